// A box that scrolls sideways can be reached with the keyboard; one whose content fits is no stop on the way.
(() => {
  const boxes = ".katex-display, .pst-scrollable-table-container, .cell_output .output, .cell_output .text_html, .bd-article pre";
  const update = () => {
    for (const box of document.querySelectorAll(boxes)) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  addEventListener("load", update);
  addEventListener("resize", update);
  document.fonts?.ready.then(update);
})();
