// A small ReLU network on a square: the polygon in which a point lies, and the affine map that the network is there.
// The weights are those of the chapter, with two decimals, so the numbers that the reader sees are those of the page.

"use strict";

boards.add("regions", (frame) => {
  const { make, line, quiet, fixed } = boards;
  const END = 1; // the square is [-END, END]²
  const LAYERS = [
    { W: [[-0.97, -0.25], [-0.25, -0.97], [0.99, 0.12], [-0.66, -0.75], [0.73, -0.68]], b: [-0.04, -0.31, -0.18, 0.59, 0.32] },
    {
      W: [[-0.41, 0.02, -0.05, 0.93, 1.31], [-0.17, -0.35, 1.4, 1.25, 0.8], [-1.14, -0.55, -0.34, 0.15, 0.8]],
      b: [-0.46, 0.07, 0.18],
    },
    { W: [[-1.06, 0.6, 0.54]], b: [0] },
  ];
  const round = (number) => Math.round(Math.min(Math.max(number, -END), END) * 50) / 50;

  const dot = (a, b) => a.reduce((sum, number, n) => sum + number * b[n], 0);
  // The functions [a1, a2, c] of the plane, c + a1 x1 + a2 x2, that a layer makes of those it is given.
  const affine = ({ W, b }, functions) =>
    W.map((row, j) => [0, 1, 2].map((k) => dot(row, functions.map((f) => f[k])) + (k === 2 ? b[j] : 0)));
  const value = ([a1, a2, c], [x1, x2]) => a1 * x1 + a2 * x2 + c;

  // The part of a convex polygon on which a function is not negative: its corners there, and where a side is crossed.
  const clip = (corners, f) =>
    corners.flatMap((p, n) => {
      const q = corners[(n + 1) % corners.length];
      const [u, v] = [value(f, p), value(f, q)];
      const crossing = u * v < 0 ? [[0, 1].map((k) => p[k] + ((q[k] - p[k]) * u) / (u - v))] : [];
      return u >= 0 ? [p, ...crossing] : crossing;
    });
  const area = (corners) =>
    corners.reduce((sum, p, n) => sum + p[0] * corners[(n + 1) % corners.length][1] - p[1] * corners[(n + 1) % corners.length][0], 0) / 2;

  // Every region: each unit cuts the polygons so far in two, where both parts have an area.
  let regions = [{ corners: [[-END, -END], [END, -END], [END, END], [-END, END]], functions: [[1, 0, 0], [0, 1, 0]], word: "" }];
  for (const layer of LAYERS.slice(0, -1))
    regions = regions.flatMap((region) => {
      const z = affine(layer, region.functions);
      let parts = [{ corners: region.corners, functions: [], word: region.word }];
      for (const f of z)
        parts = parts.flatMap((part) =>
          [f.map((a) => -a), f]
            .map((side, on) => ({
              corners: clip(part.corners, side),
              functions: [...part.functions, on ? f : [0, 0, 0]],
              word: part.word + on,
            }))
            .filter((half) => area(half.corners) > 1e-12));
      return parts;
    });
  for (const region of regions) region.map = affine(LAYERS.at(-1), region.functions)[0];

  // A unit is off at 0, as in the library.
  const wordOf = (x) => {
    let [h, word] = [x, ""];
    for (const { W, b } of LAYERS.slice(0, -1)) {
      h = W.map((row, j) => Math.max(dot(row, h) + b[j], 0));
      word += h.map((number) => Number(number > 0)).join("");
    }
    return word;
  };

  let x = [0.4, 0.2];
  const here = () => regions.find((region) => region.word === wordOf(x)) ?? regions[0];
  const closed = (corners) => [...corners, corners[0]];
  const coordinates = (points) => [points.map((p) => p[0]), points.map((p) => p[1])];

  const board = boards.plane(frame, [-END * 1.16, END * 1.1, END * 1.1, -END * 1.16], {
    role: "img",
    label: "The square, cut into the regions of the network; the region of the chosen point is filled.",
    axis: false, // its lines would look like sides of regions
  });
  const text = (x1, x2, words, anchorX) =>
    board.create("text", [x1, x2, words], { ...quiet, anchorX, anchorY: "middle", fontSize: 13 });
  for (const end of [-END, END]) {
    text(end, -END * 1.07, fixed(end, 0), "middle");
    text(-END * 1.02, end, fixed(end, 0), "right");
  }
  // A number that is none lifts the pen.
  line(board, () => coordinates(regions.flatMap(({ corners }) => [...closed(corners), [NaN, NaN]])), "grey", "thin");
  line(board, () => coordinates(closed(here().corners)), "blue", "region");
  line(board, () => coordinates([x, [0, 1].map((k) => x[k] + here().map[k] / 2)]), "orange", "thick");
  // The sliders below move the point by keyboard, so the point itself is no stop of the Tab key.
  const point = boards.handle(board, "circle", (x1, x2) => choose({ x1, x2 }), "red");

  frame.classList.add("square");
  frame.setAttribute("aria-label", "The regions of a small network, and a point to be moved");
  const legend = make("p", { class: "legend" });
  legend.innerHTML = `
    <span class="key blue">the region of <i>x</i></span>
    <span class="key orange">half of <i>A</i>: there <i>f</i> rises fastest</span>
    <span class="key grey">sides of regions</span>`;
  frame.prepend(legend);
  const slider = (name, index) =>
    boards.slider(frame, { name, label: `<i>x</i><sub>${index + 1}</sub>`, min: -END, max: END, step: 0.02, value: x[index] }, (number) =>
      choose({ [name]: number }));
  const sliders = [slider("x1", 0), slider("x2", 1)];
  const numbers = make("p", { class: "numbers", role: "status", "aria-live": "polite" });
  frame.append(numbers);

  const choose = (wanted) => {
    x = [round(wanted.x1 ?? x[0]), round(wanted.x2 ?? x[1])];
    const { corners, map, word } = here();
    point.place(...x);
    sliders.forEach((input, n) => {
      input.value = x[n];
      input.setAttribute("aria-valuetext", `x${n + 1} = ${fixed(x[n], 2)}`);
    });
    board.update();
    numbers.innerHTML = `
      <span><i>x</i> = (<b data-number="x1">${fixed(x[0], 2)}</b>, <b data-number="x2">${fixed(x[1], 2)}</b>)</span>
      <span>pattern <b data-number="pattern">${word}</b></span>
      <span>corners: <b data-number="corners">${corners.length}</b></span>
      <span><i>A</i> = (<b data-number="a1">${fixed(map[0], 4)}</b>, <b data-number="a2">${fixed(map[1], 4)}</b>)</span>
      <span><i>b</i> = <b data-number="b">${fixed(map[2], 4)}</b></span>
      <span><i>Ax</i> + <i>b</i> = <b data-number="value">${fixed(value(map, x), 4)}</b></span>
      <span>regions in the square: <b data-number="regions">${regions.length}</b></span>`;
  };
  choose({});
});
