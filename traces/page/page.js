"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const NAMESPACE = "http://www.w3.org/2000/svg";

  const make = (name, options = {}, ...children) => {
    const { text, ...attributes } = options;
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(key, value);
    }
    if (text !== undefined) element.textContent = text;
    element.append(...children);
    return element;
  };

  const written = (value, digits) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    const shown = digits ?? 0;
    return value.toLocaleString("en-US", { minimumFractionDigits: shown, maximumFractionDigits: shown });
  };

  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 100 || Number.isInteger(value)) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
    return String(Number(value.toPrecision(3)));
  };

  const swatch = (colour) => make("span", { class: "swatch", style: `background:${colour}`, "aria-hidden": "true" });

  const paragraphs = (section) => {
    const found = section.paragraphs.map((text) => make("p", { text }));
    if (section.code) {
      found.push(make("pre", { tabindex: "0", role: "region", "aria-label": section.title }, make("code", { text: section.code })));
    }
    return found;
  };

  const table = (section) => {
    const body = make("tbody");
    const heads = [];
    const rows = section.rows.map((cells, number) => {
      const row = make("tr", { class: number === section.marked ? "marked" : null });
      section.columns.forEach((column, at) => {
        const isNumber = column.digits !== null;
        const text = written(cells[at], column.digits);
        const kind = isNumber ? "number" : text.length > 40 ? "long" : "";
        row.append(at === 0 ? make("th", { scope: "row", text }) : make("td", { class: kind || null, text }));
      });
      return { row, cells };
    });
    const sort = (at, direction) => {
      const sign = direction === "ascending" ? 1 : -1;
      const known = rows.filter((one) => one.cells[at] !== null);
      const unknown = rows.filter((one) => one.cells[at] === null);
      known.sort((one, other) => {
        const [a, b] = [one.cells[at], other.cells[at]];
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      });
      body.replaceChildren(...[...known, ...unknown].map((one) => one.row));
      heads.forEach((head, number) => head.setAttribute("aria-sort", number === at ? direction : "none"));
    };
    const headings = section.columns.map((column, at) => {
      const button = make("button", { type: "button", text: column.name, title: column.meaning || null });
      const isNumber = column.digits !== null;
      const head = make("th", { scope: "col", "aria-sort": "none", class: isNumber ? "number" : null }, button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = isNumber ? "descending" : "ascending";
        const other = isNumber ? "ascending" : "descending";
        sort(at, now === first ? other : first);
      });
      heads.push(head);
      return head;
    });
    body.append(...rows.map((one) => one.row));
    const whole = make("table", {}, make("caption", { text: section.title, class: "soft", hidden: "" }),
      make("thead", {}, make("tr", {}, ...headings)), body);
    const note = make("p", { class: "note controls", text: "A heading sorts by its column." });
    return [make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": section.title }, whole), note];
  };

  const memory = (section) => section.bars.map((one) => {
    const parts = Object.entries(one.parts).sort((a, b) => b[1] - a[1]);
    const used = parts.reduce((sum, part) => sum + part[1], 0);
    const whole = Math.max(one.capacity_bytes, used);
    const gigabytes = (size) => `${(size / 1e9).toFixed(2)} GB`;
    const share = Math.round((1000 * used) / one.capacity_bytes) / 10;
    const head = make("div", { class: "head" }, make("strong", { text: one.name }),
      make("span", { text: `${gigabytes(used)} of ${gigabytes(one.capacity_bytes)} (${share} %)` }));
    const said = parts.map(([name, size]) => `${name} ${gigabytes(size)}`).join(", ");
    const bar = make("div", { class: "bar", role: "img", "aria-label": `${one.name}: ${said}` });
    for (const [name, size] of parts) {
      const style = `width:${(100 * size) / whole}%;background:${section.colours[name]}`;
      bar.append(make("span", { style, title: `${name}: ${gigabytes(size)}` }));
    }
    const legend = make("ul", { class: "legend" }, ...parts.map(([name, size]) =>
      make("li", {}, swatch(section.colours[name]), `${name} ${gigabytes(size)}`)));
    return make("div", { class: "memory" }, head, bar, legend);
  });

  const ticks = (length) => {
    const step = [1, 2, 5, 10].map((one) => one * 10 ** Math.floor(Math.log10(length / 4)))
      .find((one) => length / one <= 4) ?? length;
    const found = [];
    for (let at = 0; at < length * 0.85; at += step) found.push(at);
    return [...found, length];
  };

  const timelines = (section) => {
    const longest = Math.max(...section.timelines.map((one) => one.length_ms));
    const hold = make("div");
    const draw = (shared) => hold.replaceChildren(...section.timelines.map((one) => {
      const length = shared ? longest : one.length_ms;
      const grid = make("div", { class: "timeline" });
      for (const [lane, bars] of Object.entries(one.lanes)) {
        const svg = document.createElementNS(NAMESPACE, "svg");
        svg.setAttribute("viewBox", "0 0 1000 10");
        svg.setAttribute("preserveAspectRatio", "none");
        svg.setAttribute("role", "img");
        const busy = bars.reduce((sum, bar) => sum + bar[2], 0);
        svg.setAttribute("aria-label", `${lane}: busy ${short(busy)} of ${short(one.length_ms)} ms`);
        for (const [op, begin, long] of bars) {
          const bar = document.createElementNS(NAMESPACE, "rect");
          const shape = { x: (1000 * begin) / length, y: 0, width: Math.max((1000 * long) / length, 0.6), height: 10 };
          for (const [key, value] of Object.entries(shape)) bar.setAttribute(key, value);
          bar.setAttribute("fill", section.colours[op] ?? "#666666");
          const name = document.createElementNS(NAMESPACE, "title");
          name.textContent = `${op}: ${short(long)} ms from ${short(begin)} ms`;
          bar.append(name);
          svg.append(bar);
        }
        grid.append(make("span", { class: "lane", text: lane }), svg);
      }
      const axis = make("div", { class: "axis", "aria-hidden": "true" }, ...ticks(length).map((at) =>
        make("span", { style: `left:${(100 * at) / length}%`, text: `${short(at)} ms` })));
      grid.append(make("span"), axis);
      return make("div", {}, make("h3", { text: one.name }), make("p", { class: "note", text: one.note }), grid);
    }));
    draw(true);
    const used = new Set(section.timelines.flatMap((one) => Object.values(one.lanes).flat().map((bar) => bar[0])));
    const legend = make("ul", { class: "legend" }, ...Object.keys(section.colours).filter((op) => used.has(op)).map((op) =>
      make("li", { title: section.meanings[op] ?? null }, swatch(section.colours[op]), op)));
    if (section.timelines.length < 2) return [legend, hold];
    const box = make("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => draw(box.checked));
    const control = make("p", { class: "controls" }, make("label", {}, box, " one axis of time for all"));
    return [control, legend, hold];
  };

  const sliders = (section) => {
    const sizes = section.axes.map((axis) => axis.values.length);
    const strides = sizes.map((_, at) => sizes.slice(at + 1).reduce((product, size) => product * size, 1));
    const places = section.axes.map((axis) => axis.at);
    const answer = make("div", { class: "answer", role: "status", "aria-live": "polite" });
    const basis = make("p", { class: "note" });

    const corners = () => places.reduce((found, place, axis) => {
      const [low, part] = [Math.floor(place), place - Math.floor(place)];
      const next = [];
      for (const one of found) {
        if (part < 1) next.push({ index: one.index + low * strides[axis], weight: one.weight * (1 - part) });
        if (part > 0) next.push({ index: one.index + (low + 1) * strides[axis], weight: one.weight * part });
      }
      return next;
    }, [{ index: 0, weight: 1 }]).filter((one) => one.weight > 0);

    const valueAt = (axis, place) => {
      const low = Math.floor(place);
      const [a, b] = [axis.values[low], axis.values[Math.min(low + 1, axis.values.length - 1)]];
      return a + (place - low) * (b - a);
    };

    const show = () => {
      const found = corners().map((one) => ({ ...one, point: section.points[one.index] }));
      const computed = found.length === 1;
      if (found.some((one) => one.point === null)) {
        answer.replaceChildren(make("p", { class: "none", text: section.nothing }));
      } else {
        const nearest = found.reduce((best, one) => (one.weight > best.weight ? one : best));
        answer.replaceChildren(...section.measures.map((measure, at) => {
          const value = measure.digits === null ? nearest.point[at]
            : found.some((one) => one.point[at] === null) ? null
              : found.reduce((sum, one) => sum + one.weight * one.point[at], 0);
          const text = value === null ? "none" : `${written(value, measure.digits)}${measure.unit ? ` ${measure.unit}` : ""}`;
          return make("div", {}, make("div", { class: "name", text: measure.name }), make("div", { class: "value", text }));
        }));
      }
      basis.textContent = computed ? "This point was simulated."
        : `Interpolated between ${found.length} simulated points, not simulated itself; names are those of the nearest one.`;
    };

    const controls = section.axes.map((axis, at) => {
      const id = `slider-${at}`;
      const output = make("output", { for: id });
      const input = make("input", {
        id, type: "range", min: "0", max: String(axis.values.length - 1), step: "0.25", value: String(axis.at),
      });
      const change = () => {
        places[at] = Number(input.value);
        const text = `${short(valueAt(axis, places[at]))} ${axis.unit}`.trim();
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
      };
      input.addEventListener("input", () => { change(); show(); });
      change();
      if (axis.values.length < 2) input.disabled = true;
      const marks = make("div", { class: "ticks", "aria-hidden": "true" },
        ...axis.values.map((value) => make("span", { text: short(value) })));
      return { input, change, at, element: make("div", {}, make("label", { for: id }, make("span", { text: axis.name }), output), input, marks) };
    });
    const back = make("button", { type: "button", text: "Back to the plan" });
    back.addEventListener("click", () => {
      for (const one of controls) {
        one.input.value = String(section.axes[one.at].at);
        one.change();
      }
      show();
    });
    show();
    return [make("div", { class: "sliders" }, ...controls.map((one) => one.element)), answer, basis,
      make("p", { class: "note", text: section.note }), make("p", { class: "controls" }, back)];
  };

  const builders = { paragraphs, table, memory, timelines, sliders };
  const main = document.getElementById("sections");
  main.append(make("section", { "aria-label": "Summary" }, ...content.summary.map((text, at) =>
    make("p", { class: at === 0 ? "lead" : null, text }))));
  content.sections.forEach((section, at) => {
    const id = `section-${at}`;
    main.append(make("section", { id, "aria-labelledby": `${id}-title` },
      make("h2", { id: `${id}-title`, text: section.title }), ...builders[section.kind](section)));
    document.getElementById("contents").append(make("li", {}, make("a", { href: `#${id}`, text: section.title })));
  });

  const theme = document.getElementById("theme");
  const isDark = () => (document.documentElement.dataset.theme
    ?? (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const tell = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  tell();
})();
