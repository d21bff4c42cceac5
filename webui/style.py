"""Theme and CSS of the page: dark, light and at a phone's width."""

import gradio as gr

THEME = gr.themes.Default(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono="monospace"
)
CSS = """
.header h1 { font-size: 1.5rem; margin: 0; }
.header p { margin: .15rem 0 0; }
.advice { margin: 0; padding-inline-start: 1.1rem; }
.advice li { margin: .25rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; }
.facts + .facts { margin-top: .5rem; }
.facts div { display: flex; gap: .4rem; }
.facts dt { color: var(--body-text-color-subdued); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
/* The label floats over the pictures; only an enlarged one needs more height than its row. */
.pictures .grid-wrap { padding-top: 2.25rem; max-height: none; }
@media (max-width: 500px) {
  .pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
.seed { align-items: end; }
.parameters { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.pictures:not(:has(.preview)) .grid-wrap { min-height: 0; }
.trainings .wrap { flex-direction: column; max-height: 24rem; overflow-y: auto; flex-wrap: nowrap; }
.trainings label { overflow-wrap: anywhere; }
@media (max-width: 640px) { .trainings .wrap { max-height: 12rem; } }
.requests { flex-wrap: wrap; }
.question { border-left: 3px solid var(--color-accent); padding-left: .75rem; }
/* As many columns as there is room for, and the same in both rows. */
.steps .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(max(140px, 22%), 1fr)) !important; }
/* The number field would show the index of the step; the label shows the step itself. */
.scrubber .tab-like-container { display: none; }
.last-line { color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
progress { width: 100%; height: .75rem; border: 0; border-radius: .4rem; overflow: hidden;
  appearance: none; background: var(--border-color-primary); }
progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: var(--color-accent); }
progress::-moz-progress-bar { background: var(--color-accent); }
/* Reversed, so that it is scrolled to its end. */
.log { display: flex; flex-direction: column-reverse; max-height: 24rem; overflow-y: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
.scores { font-variant-numeric: tabular-nums; }
.prose .scores, .prose .scores * { border: 0; }
.prose .scores tr { border-bottom: 1px solid var(--border-color-primary); }
.scores :is(th, td) { padding: .1rem .6rem; text-align: right; white-space: nowrap; }
.scores th[scope=row] { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); }
/* A plot fills a fixed height, which its label and caption would exceed. */
.charts .block { height: auto !important; }
.charts .vega-embed { height: 220px; }
.cards .grid-container { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) !important; }
.wide { overflow-x: auto; }
.report { width: 100%; height: 70vh; border: 0; background: #fff; }
"""
