// What all boards share. A board is a file beside this one, named as in the book's `:::{interactive} NAME`; it calls
// `boards.add(NAME, draw)`. Plain scripts and no modules: a browser loads modules from no page that was opened as a file.

"use strict";

const boards = (() => {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // The board takes the place of the picture in its figure, and the directive's text that of the words below the picture, so
  // that the number and the address of the figure stay. Where anything fails, the figure stays as it was.
  const add = (name, draw) => {
    for (const text of document.querySelectorAll(`.interactive[data-board="${name}"]`)) {
      const figure = document.getElementById(text.dataset.static);
      const frame = make("div", { class: "board", role: "group" });
      figure.prepend(frame);
      figure.classList.add("has-board");
      try {
        draw(frame);
      } catch (error) {
        figure.classList.remove("has-board");
        frame.remove();
        throw error;
      }
      text.hidden = false;
      const credit = make("p", { class: "credit" }, "Drawn with JSXGraph.");
      figure.querySelector("figcaption").append(text, credit);
    }
  };

  // An empty coordinate system that fills the frame, `box` being [left, top, right, bottom] as JSXGraph has it. Its colours
  // come from boards.css by classes, and so follow the theme; nothing is highlighted, zoomed or animated.
  const plane = (frame, box, { role, label, axis: axes = true }) => {
    const place = make("div", { class: "jxgbox", id: `board-${frame.closest("figure").id}` });
    frame.append(place);
    JXG.Options.text.display = "internal"; // labels are SVG, so that classes colour them too
    const axis = { lastArrow: false, highlight: false, ticks: { insertTicks: false, ticksDistance: 1, minorTicks: 0, majorHeight: 8 } };
    const board = JXG.JSXGraph.initBoard(place, {
      boundingBox: box,
      axis: axes,
      defaultAxes: {
        x: { ...axis, ticks: { ...axis.ticks, label: { fontSize: 13, anchorX: "middle", offset: [0, -14] } } },
        y: { ...axis, ticks: { ...axis.ticks, label: { fontSize: 13, anchorX: "right", offset: [-8, 0] } } },
      },
      keepAspectRatio: false,
      moveTarget: place, // so that it keeps a pointer that was captured
      maxFrameRate: 1000, // the last move of a quick drag counts
      pan: { enabled: false },
      zoom: { enabled: false },
      keyboard: { enabled: false }, // it moves by pixels and tells nobody; our handles and sliders have their own keys
      showCopyright: false, // the caption names the library
      showNavigation: false,
      showInfobox: false,
    });
    place.setAttribute("role", role);
    place.setAttribute("aria-label", label);
    // Before JSXGraph hears of it: what is dragged follows the pointer beyond the edge too, and starts from where the board is
    // now, for JSXGraph remembers its place for a second, in which the reader may have scrolled.
    const down = (event) => {
      place.setPointerCapture(event.pointerId);
      board.positionAccessLast = 0;
    };
    place.addEventListener("pointerdown", down, { capture: true });
    return board;
  };

  const styled = (element, ...classes) => {
    element.rendNode.classList.add(...classes);
    return element;
  };

  const quiet = { fixed: true, highlight: false, withLabel: false };

  // A polygonal line through the points that `points()` gives: [[x, …], [y, …]].
  const line = (board, points, ...classes) => {
    const curve = board.create("curve", [[], []], { ...quiet, strokeWidth: 2 });
    curve.updateDataArray = () => ([curve.dataX, curve.dataY] = points());
    return styled(curve, ...classes);
  };

  // A point that `moved(x, y)` hears of while it is dragged. It is drawn where `place(x, y)` puts it afterwards.
  const handle = (board, face, moved, ...classes) => {
    const size = matchMedia("(pointer: coarse)").matches ? 12 : 8; // a finger is wider than the tip of an arrow
    const point = board.create("point", [0, 0], { face, size, withLabel: false, highlight: false, showInfobox: false });
    point.on("drag", () => moved(point.X(), point.Y()));
    point.place = (x, y) => point.setPositionDirectly(JXG.COORDS_BY_USER, [x, y]);
    return styled(point, "handle", ...classes);
  };

  // A native slider below the plane, with its label; `changed(number)` hears of it.
  const slider = (frame, { name, label, min, max, step, value }, changed) => {
    const id = `${frame.closest("figure").id}-${name}`;
    const input = make("input", { type: "range", id, name, min, max, step, value });
    input.addEventListener("input", () => changed(input.valueAsNumber));
    const words = make("label", { for: id });
    words.innerHTML = label;
    frame.append(make("div", { class: "slider" }, words, input));
    return input;
  };

  // Numbers as a reader writes them: a true minus sign, and a power of ten where four decimals would show zeros.
  const fixed = (number, digits) => {
    const text = Math.abs(number).toFixed(digits);
    return Number(text) !== 0 && number < 0 ? `−${text}` : text;
  };
  const small = (number) => {
    if (number === 0 || Math.abs(number) >= 0.001) return fixed(number, 4);
    const [digits, power] = number.toExponential(2).split("e");
    return `${digits.replace("-", "−")} × 10<sup>${power.replace("-", "−")}</sup>`;
  };

  return { add, make, plane, styled, quiet, line, handle, slider, fixed, small };
})();
