// A maxout unit of one number: three lines, and the largest of them. Each line has a round handle, which lifts it, and a square
// one, which turns it about the round one. Everything is in twentieths, so the numbers that the reader sees are exact.

"use strict";

boards.add("maxout", (frame) => {
  const { make, line, fixed } = boards;
  const [LEFT, RIGHT] = [-3, 3];
  const [LOW, HIGH] = [-2.4, 3.4]; // the handles stay inside
  const COLOURS = ["blue", "orange", "green"];
  const round = (number) => Math.round(number * 20) / 20;
  const clamp = (number, low, high) => round(Math.min(Math.max(number, low), high));

  // `height` is the line's at `at`, where the round handle is; the square one is one step to the side.
  const start = [
    { at: -2, side: -1, height: 1.2, slope: -1 },
    { at: 0, side: 1, height: -0.2, slope: 0.2 },
    { at: 2, side: 1, height: 1.4, slope: 1.1 },
  ];
  let lines = start.map((l) => ({ ...l }));
  const bias = (l) => round(l.height - l.slope * l.at);
  const value = (l, x) => l.slope * x + bias(l);

  // The maximum, which is straight between neighbouring crossings: there one line is above the others, and the middle tells
  // which. Of equal lines the first one counts, as in the unit.
  const envelope = () => {
    const crossings = [LEFT, RIGHT];
    lines.forEach((a, i) =>
      lines.slice(i + 1).forEach((b) => {
        const x = (bias(b) - bias(a)) / (a.slope - b.slope);
        if (x > LEFT && x < RIGHT) crossings.push(x);
      }));
    crossings.sort((a, b) => a - b);
    const top = (x) => Math.max(...lines.map((l) => value(l, x)));
    const showing = new Set();
    for (let n = 1; n < crossings.length; n++) {
      if (crossings[n] - crossings[n - 1] < 1e-9) continue; // three lines through one point
      const middle = (crossings[n] + crossings[n - 1]) / 2;
      showing.add(lines.findIndex((l) => value(l, middle) === top(middle)));
    }
    return { corners: [crossings, crossings.map(top)], showing };
  };

  const board = boards.plane(frame, [LEFT - 0.4, 3.8, RIGHT + 0.4, -2.8], {
    role: "group",
    label: "Three lines with two handles each, and the largest of the lines drawn thick.",
  });
  line(board, () => envelope().corners, "ink", "band");
  for (const [n, colour] of COLOURS.entries())
    line(board, () => [[LEFT, RIGHT], [LEFT, RIGHT].map((x) => value(lines[n], x))], colour);

  // Both handles of a line: what may be set, how it is read, and where it is drawn. A lift keeps the slope, and so stops where
  // the square handle would leave the board.
  const HANDLES = [
    {
      face: "circle",
      name: "height",
      range: (l) => [LOW - Math.min(0, l.side * l.slope), HIGH - Math.max(0, l.side * l.slope)],
      get: (l) => l.height,
      set: (l, height) => (l.height = height),
      fromDrag: (l, y) => y,
      place: (l) => [l.at, l.height],
    },
    {
      face: "square",
      name: "slope",
      range: (l) => [(LOW - l.height) * l.side, (HIGH - l.height) * l.side].sort((a, b) => a - b),
      get: (l) => l.slope,
      set: (l, slope) => (l.slope = slope),
      fromDrag: (l, y) => (y - l.height) * l.side,
      place: (l) => [l.at + l.side, l.height + l.side * l.slope],
    },
  ];
  // An arrow up or to the right lifts the handle, and so lowers the slope where the square handle is on the left; the other keys
  // are those of every slider.
  const KEYS = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1, PageUp: 0.5, PageDown: -0.5 };
  const handles = [];
  for (const [n, colour] of COLOURS.entries())
    for (const kind of HANDLES) {
      const set = (wanted) => {
        kind.set(lines[n], clamp(wanted, ...kind.range(lines[n])));
        show();
      };
      const point = boards.handle(board, kind.face, (x, y) => set(kind.fromDrag(lines[n], y)), colour);
      const node = point.rendNode;
      node.setAttribute("tabindex", "0");
      node.setAttribute("role", "slider");
      node.setAttribute("aria-orientation", "vertical");
      node.setAttribute("aria-label", `line ${n + 1}, ${kind.name}`);
      point.on("down", () => node.focus({ preventScroll: true })); // so that the keys can go on where the mouse stopped
      node.addEventListener("keydown", (event) => {
        const l = lines[n];
        const [low, high] = kind.range(l);
        const up = kind.name === "slope" ? l.side : 1;
        if (event.key in KEYS) set(kind.get(l) + up * KEYS[event.key]);
        else if (event.key === "Home") set(low);
        else if (event.key === "End") set(high);
        else return;
        event.preventDefault();
      });
      handles.push({ n, kind, point, node });
    }

  frame.setAttribute("aria-label", "A maxout unit of three lines, to be moved");
  const formulas = make("p", { class: "legend" });
  const count = make("p", { class: "numbers", role: "status", "aria-live": "polite" });
  const again = make("button", { type: "button", class: "again" }, "Start again");
  again.addEventListener("click", () => {
    lines = start.map((l) => ({ ...l }));
    show();
  });
  frame.prepend(formulas);
  frame.append(make("div", { class: "below" }, count, again));

  const formula = (l) => `${fixed(l.slope, 2)}<i>x</i> ${bias(l) < 0 ? "−" : "+"} ${fixed(Math.abs(bias(l)), 2)}`;
  const show = () => {
    for (const { n, kind, point, node } of handles) {
      const l = lines[n];
      const [low, high] = kind.range(l);
      point.place(...kind.place(l));
      node.setAttribute("aria-valuemin", fixed(low, 2).replace("−", "-"));
      node.setAttribute("aria-valuemax", fixed(high, 2).replace("−", "-"));
      node.setAttribute("aria-valuenow", kind.get(l));
      node.setAttribute("aria-valuetext", `${fixed(kind.get(l), 2)}${kind.name === "height" ? ` at x = ${fixed(l.at, 0)}` : ""}`);
    }
    board.update();
    const { showing } = envelope();
    formulas.innerHTML = lines
      .map((l, n) => `<span class="key ${COLOURS[n]}">line ${n + 1}: <b data-number="line-${n + 1}">${formula(l)}</b></span>`)
      .join(" ") + ' <span class="key ink band">their maximum</span>';
    count.innerHTML = `<span>pieces that show on [−3, 3]: <b data-number="pieces">${showing.size}</b> of 3</span>`;
  };
  show();
});
