"use strict";
(() => {
  const tip = document.getElementById("tip");

  const twins = (token) =>
    [...token.closest(".example").querySelectorAll(`.t[data-i="${token.dataset.i}"]`)];

  // Everything is set as text, never as markup: tokens come from strangers' texts.
  const cell = (row, text) => { row.insertCell().textContent = text; };

  function show(token) {
    hide();
    const title = document.createElement("b");
    const table = document.createElement("table");
    title.textContent = token.textContent;
    for (const twin of twins(token)) {
      twin.classList.add("same");
      const row = table.insertRow();
      row.classList.toggle("here", twin === token);
      cell(row, twin.closest(".strip").dataset.method);
      cell(row, twin.dataset.score);
    }
    tip.replaceChildren(title, table);
    tip.hidden = false;
    place(token.getBoundingClientRect());
  }

  // Beside the token, so that the same token in the other strips stays in sight; else below it.
  function place(box) {
    const wide = tip.offsetWidth + 20, right = box.right + 12, left = box.left - wide + 8;
    const beside = right + wide < innerWidth ? right : left;
    const narrow = beside < 8;
    const x = narrow ? Math.max(8, Math.min(box.left, innerWidth - wide)) : beside;
    const y = narrow ? box.bottom + 8 : box.top - 6;
    tip.style.left = `${x}px`;
    tip.style.top = `${Math.max(8, Math.min(y, innerHeight - tip.offsetHeight - 8))}px`;
  }

  function hide() {
    tip.hidden = true;
    for (const twin of document.querySelectorAll(".t.same")) twin.classList.remove("same");
  }

  // One tab stop for each text; the arrow keys walk along its tokens and between its methods.
  function step(token, key) {
    const strip = token.closest(".strip");
    const tokens = [...strip.querySelectorAll(".t")];
    const here = tokens.indexOf(token);
    if (key === "ArrowLeft") return tokens[here - 1];
    if (key === "ArrowRight") return tokens[here + 1];
    const column = twins(token);
    return column[column.indexOf(token) + (key === "ArrowUp" ? -1 : 1)];
  }

  for (const example of document.querySelectorAll(".example")) {
    const first = example.querySelector(".t");
    if (first) first.tabIndex = 0;
    example.addEventListener("mouseover", (event) => {
      const token = event.target.closest(".t");
      if (token) show(token); else hide();
    });
    example.addEventListener("mouseleave", hide);
    example.addEventListener("focusin", (event) => {
      if (event.target.matches(".t")) show(event.target);
    });
    example.addEventListener("focusout", hide);
    example.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (!event.key.startsWith("Arrow") || !event.target.matches(".t")) return;
      event.preventDefault();
      const next = step(event.target, event.key);
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  addEventListener("scroll", hide, { passive: true });

  // Pointing at a method in a figure's key dims the others.
  for (const entry of document.querySelectorAll(".key li")) {
    const scope = entry.closest(".curves");
    const light = (on) => {
      scope.classList.toggle("dimmed", on);
      for (const line of scope.querySelectorAll("svg [data-method]"))
        line.classList.toggle("lit", on && line.dataset.method === entry.dataset.method);
    };
    for (const name of ["mouseenter", "focus"]) entry.addEventListener(name, () => light(true));
    for (const name of ["mouseleave", "blur"]) entry.addEventListener(name, () => light(false));
  }
})();
