"""A page with every kind of section, small enough to be checked by eye, with names that are meant to do harm."""

from traces.page import (
    MemoryBar,
    MemoryBars,
    PageColumn,
    Paragraphs,
    SliderAxis,
    SliderMeasure,
    Sliders,
    SortableTable,
    TimelineBars,
    Timelines,
    render_page,
)

HARMFUL = "</script><script>document.title = 'harm'</script><img src=x onerror=\"document.title = 'harm'\">"


def example_page(title=f"Model {HARMFUL}"):
    rows = (("slow", 2.5, None), (HARMFUL, 10.0, "GPU"), ("middle", 9.0, "CPU"))
    columns = (PageColumn("schedule"), PageColumn("tokens/s", 2, "of all requests"), PageColumn("busiest lane"))
    lanes = {"GPU": [("Attn", 0.0, 2.0), ("Experts", 3.0, 1.0)], "H2D": [("LoadWeights", 0.5, 4.0)]}
    short = {"GPU": [("Attn", 0.0, 0.5)]}
    timelines = (TimelineBars("one", "5 ms", 5.0, lanes), TimelineBars("two", "1 ms", 1.0, short))
    colours = {"Attn": "#e76f51", "Experts": "#14746f", "LoadWeights": "#f4a261"}
    sections = [
        SortableTable("Schedules", columns, rows, marked=1),
        MemoryBars("Memory", (MemoryBar("device", 10**9, {"weights": 6 * 10**8}),), {"weights": "#1d6fa5"}),
        Timelines("A layer", timelines, colours),
        Sliders(
            "What if",
            (SliderAxis("link", "GB/s", (10.0, 20.0, 40.0), 1), SliderAxis("requests", "", (1.0, 4.0), 0)),
            (SliderMeasure("speed", "tokens/s", 1), SliderMeasure("schedule")),
            ((1.0, "a"), None, (2.0, "b"), (8.0, "c"), (4.0, "b"), (16.0, "c")),
            "Nothing fits.",
        ),
        Paragraphs("Command", ("Copy it.",), code="program --model '$(x)' \\\n    --more"),
    ]
    return render_page(title, (f"Best: {HARMFUL}",), sections)
