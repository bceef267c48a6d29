from .document import render_page as render_page
from .palette import colours as colours, colours_of as colours_of
from .sections import (
    MemoryBar as MemoryBar,
    MemoryBars as MemoryBars,
    PageColumn as PageColumn,
    Paragraphs as Paragraphs,
    Section as Section,
    SliderAxis as SliderAxis,
    SliderMeasure as SliderMeasure,
    Sliders as Sliders,
    SortableTable as SortableTable,
    TimelineBars as TimelineBars,
    Timelines as Timelines,
    merged as merged,
)
