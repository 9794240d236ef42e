// The larger of x and 0, and its smooth friend LSE_t(x, 0) = ln(e^{tx} + e^0) / t, with t and x in the reader's hands.

"use strict";

boards.add("logsumexp", (frame) => {
  const { make, line, styled, quiet, fixed, small } = boards;
  const [LEFT, RIGHT] = [-3, 3];

  const max = (x) => Math.max(x, 0);
  // ln(e^{tx} + 1) / t less the maximum. Written with the distance |x| it neither overflows nor loses digits.
  const gap = (t, x) => Math.log1p(Math.exp(-t * Math.abs(x))) / t;
  // The slider has the exponent of 2. The rounded t that the reader sees is the t of every number beside it.
  const temperature = (exponent) => Number((2 ** exponent).toPrecision(3));

  let t = 1;
  let x = 0.5;

  const board = boards.plane(frame, [LEFT - 0.2, 4.1, RIGHT + 0.2, -0.6], {
    role: "img",
    label: "Graphs of the maximum of x and 0, of LogSumExp above it, and of the upper bound, with a mark at the chosen x.",
  });
  const xs = Array.from({ length: 241 }, (_, n) => LEFT + ((RIGHT - LEFT) * n) / 240);
  line(board, () => [[LEFT, 0, RIGHT], [0, 0, RIGHT].map((y) => y + Math.LN2 / t)], "grey", "dashed");
  line(board, () => [xs, xs.map((x) => max(x) + gap(t, x))], "blue", "thick");
  line(board, () => [[LEFT, 0, RIGHT], [0, 0, RIGHT]], "orange");
  line(board, () => [[x, x], [0, max(x)]], "grey", "thin");
  line(board, () => [[x, x], [max(x), max(x) + gap(t, x)]], "red", "thick");
  // The slider below moves x by keyboard, so the point itself is no stop of the Tab key.
  const point = boards.handle(board, "circle", (x) => choose({ x }), "red");
  for (const [height, colour] of [[() => max(x), "orange"], [() => max(x) + gap(t, x), "blue"]])
    styled(board.create("point", [() => x, height], { ...quiet, size: 3, showInfobox: false }), colour, "dot");

  const legend = make("p", { class: "legend" });
  legend.innerHTML = `
    <span class="key orange">max(<i>x</i>, 0)</span>
    <span class="key blue">LSE<sub><i>t</i></sub>(<i>x</i>, 0)</span>
    <span class="key grey dashed">max(<i>x</i>, 0) + ln 2 / <i>t</i></span>
    <span class="key red">the gap at <i>x</i></span>`;
  frame.prepend(legend);
  frame.setAttribute("aria-label", "LogSumExp and the maximum, to be moved");

  const sliders = {
    t: boards.slider(frame, { name: "t", label: "temperature <i>t</i>", min: -2, max: 5, step: 0.125, value: 0 }, (n) =>
      choose({ t: temperature(n) })),
    x: boards.slider(frame, { name: "x", label: "place <i>x</i>", min: LEFT, max: RIGHT, step: 0.05, value: x }, (x) =>
      choose({ x })),
  };
  const numbers = make("p", { class: "numbers", role: "status", "aria-live": "polite" });
  frame.append(numbers);

  const choose = (wanted) => {
    t = wanted.t ?? t;
    // Twentieths, as the slider has them, so that the x that the reader sees is the x of the gap.
    x = Math.round(Math.min(Math.max(wanted.x ?? x, LEFT), RIGHT) * 20) / 20;
    point.place(x, 0);
    sliders.x.value = x;
    sliders.x.setAttribute("aria-valuetext", `x = ${fixed(x, 2)}`);
    sliders.t.setAttribute("aria-valuetext", `t = ${t.toPrecision(3)}`);
    board.update();
    numbers.innerHTML = `
      <span><i>t</i> = <b data-number="t">${t.toPrecision(3)}</b></span>
      <span><i>x</i> = <b data-number="x">${fixed(x, 2)}</b></span>
      <span>gap at <i>x</i>: <b data-number="gap">${small(gap(t, x))}</b></span>
      <span>largest gap, ln 2 / <i>t</i>: <b data-number="bound">${small(Math.LN2 / t)}</b></span>`;
  };
  choose({});
});
