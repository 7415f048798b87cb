"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [grid, large, view, tip] = ["grid", "large", "view", "tip"].map((id) => document.getElementById(id));
  const rows = data.tokens.length, columns = data.keys.length;
  const READ = 0.05; // share of the readout from which on a row is marked
  const make = (name, parent) => parent.appendChild(document.createElement(name));
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  let stops; // colours of the scheme in use: low, middle, high

  function colour(value) {
    const part = (2 * value) / data.largest;
    const [from, to] = part < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    const share = part < 1 ? part : part - 1;
    return from.map((channel, i) => Math.round(channel + (to[i] - channel) * share));
  }

  // One pixel a cell; the browser enlarges it.
  function paint(canvas, map) {
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d");
    const picture = context.createImageData(columns, rows);
    map.rows.flat().forEach((value, i) => picture.data.set([...colour(value), 255], 4 * i));
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  // The large view: cells of a readable size, all tokens named, marked rows.
  let shown = null, cell = 16, edge = 0, cursor = [0, 0];
  function enlarge(map) {
    shown = map;
    const room = Math.min(innerWidth, innerHeight) * 0.72;
    cell = Math.max(9, Math.min(30, Math.floor(room / Math.max(rows, columns))));
    const font = `${Math.max(9, Math.min(13, cell - 2))}px ${style("--sans")}`;
    const context = view.getContext("2d");
    context.font = font;
    edge = 10 + Math.ceil(Math.max(...[...data.tokens, ...data.keys].map((t) => context.measureText(t).width)));
    const [width, height] = [columns, rows].map((n) => edge + n * cell + 8), ratio = devicePixelRatio;
    [view.width, view.height] = [width * ratio, height * ratio];
    [view.style.width, view.style.height] = [`${width}px`, `${height}px`];
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(paint(document.createElement("canvas"), map), edge, edge, columns * cell, rows * cell);
    context.font = font;
    context.textBaseline = "middle";
    context.fillStyle = style("--ink");
    context.textAlign = "left";
    data.keys.forEach((token, i) => {
      context.save();
      context.translate(edge + (i + 0.5) * cell, edge - 5);
      context.rotate(-Math.PI / 2);
      context.fillText(token, 0, 0);
      context.restore();
    });
    context.textAlign = "right";
    data.tokens.forEach((token, i) => {
      const middle = edge + (i + 0.5) * cell;
      context.fillStyle = style("--ink");
      context.fillText(token, edge - 5, middle);
      context.fillStyle = style("--mark");
      if (data.readout[i] >= READ) context.fillRect(edge + columns * cell + 3, middle - cell / 2, 3, cell);
    });
    document.getElementById("name").textContent = `${map.layer}, ${map.head}`;
    if (!large.open) large.showModal();
    view.focus();
  }

  function say(map, query, key, x, y) {
    const inside = query >= 0 && key >= 0 && query < rows && key < columns;
    tip.hidden = !inside;
    if (!inside) return;
    // A dialog lies above everything but its own children.
    (large.open ? large : document.body).append(tip);
    const value = (map.rows[query][key] / data.scale).toFixed(4);
    tip.textContent = `${data.tokens[query]} → ${data.keys[key]}  ${value}`;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
  }

  function follow(canvas, place) {
    canvas.addEventListener("mousemove", (event) => {
      const [map, query, key] = place(event, canvas.getBoundingClientRect());
      say(map, query, key, event.clientX, event.clientY);
    });
    canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  }
  follow(view, (event, box) => {
    cursor = [event.clientY - box.top, event.clientX - box.left].map((p) => Math.floor((p - edge) / cell));
    return [shown, ...cursor];
  });
  view.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    cursor = cursor.map((p, i) => Math.max(0, Math.min([rows, columns][i] - 1, p + move[i])));
    const box = view.getBoundingClientRect();
    const [y, x] = cursor.map((p) => edge + (p + 0.5) * cell);
    say(shown, ...cursor, box.left + x, box.top + y);
  });

  function build() {
    stops = ["--low", "--mid", "--high"].map((name) => channels(style(name)));
    grid.replaceChildren();
    const tower = grid.classList.contains("tower");
    const heads = [...new Set(data.maps.map((map) => map.head))];
    if (!tower) for (const name of ["", ...heads]) Object.assign(make("div", grid), { textContent: name, className: "head" });
    data.maps.forEach((map, i) => {
      if (!tower && i % heads.length === 0) Object.assign(make("div", grid), { textContent: map.layer, className: "layer" });
      const button = make("button", grid);
      if (tower) make("span", button).textContent = `${map.layer}, ${map.head}`;
      button.setAttribute("aria-label", `enlarge ${map.layer}, ${map.head}`);
      button.addEventListener("click", () => enlarge(map));
      const frame = Object.assign(make("div", button), { className: "frame" });
      data.readout.forEach((share, token) => {
        if (share >= READ) Object.assign(make("i", frame).style, { top: `${100 * token / rows}%`, height: `${100 / rows}%` });
      });
      follow(paint(make("canvas", frame), map), (event, box) =>
        [map, Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * columns)]);
    });
  }
  document.getElementById("most").textContent = (data.largest / data.scale).toFixed(2);
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("close", () => { tip.hidden = true; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  build();
})();
