"""Theme and CSS of the page, with the colours of the score report."""

from pathlib import Path

import gradio as gr

_LOOK = Path(__file__).with_name("look")
LOGO = _LOOK / "logo.svg"


def content_of(name: str) -> str:
    """Return the text of a file of `look/`, such as a component's JavaScript."""
    return (_LOOK / name).read_text(encoding="utf-8")


JS, CSS = content_of("page.js"), content_of("style.css")

_PAPER, _CARD, _INK, _QUIET, _RULE = "#ffffff", "#f9fafb", "#1b1f27", "#5d6679", "#e4e7ec"
_EDGE = "#868f9e"
"""Border of a control: 3 to 1 against the paper, as WCAG asks for what one can operate."""
_DARK = {"paper": "#14171c", "card": "#1c2027", "ink": "#eceff3", "quiet": "#a4adbb"}
_DARK |= {"rule": "#2d333d", "edge": "#6b7482"}
_BLUE, _BLUE_HOVER, _BLUE_ON_DARK = "#2f6fde", "#2560c8", "#7aa7f5"
_RED, _RED_ON_DARK = "#b42318", "#f97066"


def _both(names: str, light: str, dark: str) -> dict[str, str]:
    """Return theme values for light and dark, for each of the names."""
    values: dict[str, str] = {}
    for name in names.split():
        values |= {name: light, f"{name}_dark": dark}
    return values


THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono="monospace",
    radius_size=gr.themes.sizes.radius_lg,
).set(
    **_both("body_background_fill background_fill_primary", _PAPER, _DARK["paper"]),
    **_both("block_background_fill background_fill_secondary", _CARD, _DARK["card"]),
    **_both("panel_background_fill stat_background_fill", _CARD, _DARK["card"]),
    **_both("body_text_color block_title_text_color accordion_text_color", _INK, _DARK["ink"]),
    **_both("checkbox_label_text_color table_text_color", _INK, _DARK["ink"]),
    **_both("block_label_text_color", _INK, _DARK["ink"]),
    **_both("body_text_color_subdued block_info_text_color", _QUIET, _DARK["quiet"]),
    **_both("input_placeholder_color", _QUIET, _DARK["quiet"]),
    **_both("border_color_primary block_border_color panel_border_color", _RULE, _DARK["rule"]),
    **_both("block_label_background_fill", _CARD, _DARK["card"]),
    **_both("input_background_fill", _PAPER, _DARK["paper"]),
    **_both("input_border_color checkbox_border_color", _EDGE, _DARK["edge"]),
    **_both("checkbox_background_color", _PAPER, _DARK["paper"]),
    **_both("checkbox_background_color_selected checkbox_border_color_selected", _BLUE, _BLUE),
    **_both("checkbox_label_background_fill", _PAPER, _DARK["paper"]),
    **_both("checkbox_label_background_fill_selected", "#e8f0fd", "#22304a"),
    **_both("checkbox_label_text_color_selected", _INK, _DARK["ink"]),
    **_both("checkbox_label_border_color", _RULE, _DARK["rule"]),
    **_both("checkbox_label_border_color_selected", _BLUE, _BLUE_ON_DARK),
    **_both("link_text_color link_text_color_hover", _BLUE_HOVER, _BLUE_ON_DARK),
    **_both("link_text_color_active link_text_color_visited", _BLUE_HOVER, _BLUE_ON_DARK),
    **_both("slider_color loader_color", _BLUE, _BLUE),
    **_both("button_primary_background_fill button_primary_border_color", _BLUE, _BLUE),
    **_both("button_primary_background_fill_hover", _BLUE_HOVER, _BLUE_HOVER),
    **_both("button_primary_text_color button_primary_text_color_hover", "#ffffff", "#ffffff"),
    **_both("button_secondary_background_fill", _PAPER, _DARK["card"]),
    **_both("button_secondary_background_fill_hover", "#f0f2f5", "#262b34"),
    **_both("button_secondary_border_color", _EDGE, _DARK["edge"]),
    **_both("button_secondary_text_color button_secondary_text_color_hover", _INK, _DARK["ink"]),
    **_both("button_cancel_background_fill", _PAPER, _DARK["card"]),
    **_both("button_cancel_background_fill_hover", "#fef3f2", "#2a1a1b"),
    **_both("button_cancel_border_color button_cancel_text_color", _RED, _RED_ON_DARK),
    **_both("button_cancel_text_color_hover", _RED, _RED_ON_DARK),
    **_both("error_text_color error_icon_color error_border_color", _RED, _RED_ON_DARK),
    **_both("color_accent_soft", "#e8f0fd", "#22304a"),
    **_both("block_border_width input_border_width", "1px", "1px"),
    **_both("block_shadow input_shadow button_primary_shadow", "none", "none"),
    **_both("button_border_width", "1px", "1px"),
    color_accent=_BLUE,
    block_title_text_weight="550",
    button_large_text_weight="600",
    button_medium_text_weight="550",
    button_small_text_weight="550",
    block_label_text_weight="500",
)
