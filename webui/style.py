"""How the page looks, in dark and in light and at a phone's width."""

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono="monospace"
)
CSS = """
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; }
.facts + .facts { margin-top: .5rem; }
.facts div { display: flex; gap: .4rem; }
.facts dt { color: var(--body-text-color-subdued); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
/* The label floats over the pictures; only an enlarged one needs more height than its row. */
.pictures .grid-wrap { padding-top: 2.25rem; max-height: none; }
@media (max-width: 500px) {
  .pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
.seed { align-items: end; }
.parameters { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.pictures:not(:has(.preview)) .grid-wrap { min-height: 0; }
"""
