"use strict";
(() => {
  const read = (id) => { const node = document.getElementById(id); return node ? JSON.parse(node.textContent) : null; };
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") node.textContent = value; else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const fill = (select, options) => {
    select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
  };

  const answers = read("answers");
  if (answers) {
    const [model, method, kind, outcome, words, list, shown, count] =
      ["model", "method", "kind", "outcome", "words", "list", "shown", "count"].map((name) => document.getElementById(`pick-${name}`));
    const verdict = (passed) => (passed === null || passed === undefined ? "not judged" : passed ? "follows all" : "fails");
    const mark = (held) => (held === null || held === undefined ? "–" : held ? "✓" : "✗");
    const state = () => answers.models[model.value];

    const fits = (prompt) => {
      if (kind.value && !prompt.constraints.some((one) => one.kind === kind.value)) return false;
      const needle = words.value.trim().toLowerCase();
      if (needle && !prompt.text.toLowerCase().includes(needle)) return false;
      return !outcome.value || (method.value ? [method.value] : Object.keys(prompt.answers)).some((name) => hasOutcome(prompt, name));
    };

    const hasOutcome = (prompt, name) => {
      const own = prompt.answers[name], base = prompt.answers[answers.baseline];
      if (!own || own.passed === null) return false;
      if (outcome.value === "follows") return own.passed;
      if (outcome.value === "fails") return !own.passed;
      if (!base || base.passed === null) return false;
      return outcome.value === "won" ? own.passed && !base.passed : !own.passed && base.passed;
    };

    const card = (label, colour, answer, constraints) => {
      const box = make("article", { class: "answer method" });
      box.style.setProperty("--method", colour);
      const told = answer ? `${verdict(answer.passed)} · ${answer.tokens} tokens${answer.cut ? ", cut" : ""}` : "not run";
      const held = !answer || answer.passed === null ? "" : answer.passed ? " held" : " broken";
      box.append(make("h4", { text: label }), make("p", { class: `told${held}`, text: told }));
      if (!answer) return box;
      const verdicts = make("ul", { class: "verdicts" });
      constraints.forEach((one, i) => {
        const word = answer.strict[i] === null ? "not judged" : answer.strict[i] ? "followed" : "not followed";
        verdicts.append(make("li", {}, make("span", { "aria-hidden": "true", text: `${mark(answer.strict[i])} ` }), `${one.kind}: ${word}`));
      });
      box.append(make("blockquote", { text: answer.text === "" ? "(empty)" : answer.text }), verdicts);
      return box;
    };

    const show = (id) => {
      const prompt = state().prompts.find((one) => one.id === id);
      for (const node of list.children) {
        const chosen = node.dataset.id === id;
        node.setAttribute("aria-selected", chosen);
        node.tabIndex = chosen ? 0 : -1;
      }
      shown.replaceChildren();
      if (!prompt) return;
      const heading = make("h3", { text: prompt.id });
      const rules = make("ol");
      prompt.constraints.forEach((one) => rules.append(make("li", {}, make("code", { text: one.kind }), one.text ? ` ${one.text}` : "")));
      shown.append(heading, make("p", { class: "prompt", text: prompt.text }), rules);
      const cards = make("div", { class: "cards" });
      if (prompt.expert) cards.append(card("Expert", "var(--faint)", prompt.expert, prompt.constraints));
      for (const one of state().methods) {
        if (method.value && ![method.value, answers.baseline].includes(one.id)) continue;
        cards.append(card(one.label, one.colour, prompt.answers[one.id], prompt.constraints));
      }
      shown.append(cards);
    };

    const refresh = () => {
      const before = [...list.children].find((node) => node.getAttribute("aria-selected") === "true");
      const found = state().prompts.filter(fits);
      count.textContent = `${found.length} of ${state().prompts.length} prompts`;
      list.replaceChildren(...found.map((prompt) => {
        const node = make("li", { role: "option", tabindex: "-1" }, make("span", { text: prompt.text }));
        node.dataset.id = prompt.id;
        return node;
      }));
      const kept = before && found.find((prompt) => prompt.id === before.dataset.id);
      show((kept || found[0] || { id: null }).id);
      if (kept) list.scrollTop = list.children[found.indexOf(kept)].offsetTop - list.offsetTop;
    };

    const begin = () => {
      fill(method, [["", "all methods"], ...state().methods.map((one) => [one.id, one.label])]);
      const kinds = [...new Set(state().prompts.flatMap((prompt) => prompt.constraints.map((one) => one.kind)))].sort();
      fill(kind, [["", "any"], ...kinds.map((name) => [name, name])]);
      refresh();
    };

    fill(model, Object.entries(answers.models).map(([name, one]) => [name, one.title]));
    model.closest("label").hidden = Object.keys(answers.models).length < 2;
    model.addEventListener("change", begin);
    for (const control of [method, kind, outcome]) control.addEventListener("change", refresh);
    words.addEventListener("input", refresh);
    list.addEventListener("click", (event) => { const node = event.target.closest("li"); if (node) show(node.dataset.id); });
    list.addEventListener("keydown", (event) => {
      const nodes = [...list.children], at = nodes.findIndex((node) => node.getAttribute("aria-selected") === "true");
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 }[event.key];
      if (to === undefined || !nodes[to]) return;
      event.preventDefault();
      show(nodes[to].dataset.id);
      nodes[to].focus();
    });
    begin();
  }

  const folded = () => document.querySelectorAll("details:not([open])");
  window.addEventListener("beforeprint", () => folded().forEach((node) => { node.open = true; node.dataset.folded = ""; }));
  window.addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach((node) => {
    node.open = false;
    delete node.dataset.folded;
  }));

  const curves = read("curves");
  const place = document.getElementById("hover-curves");
  if (curves && place) {
    const SVG = "http://www.w3.org/2000/svg", WIDTH = 640, HEIGHT = 260, LEFT = 52, BOTTOM = 34, TOP = 12, RIGHT = 12;
    const draw = (tag, attributes, text) => {
      const node = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      if (text !== undefined) node.textContent = text;
      return node;
    };
    const model = document.getElementById("curve-model"), metric = document.getElementById("curve-metric");
    const drawnAs = (one) => ({ class: "line method", style: `--method: ${one.colour}`, "stroke-dasharray": one.dashes });
    const short = (value) => Number(value.toPrecision(3)).toString();

    const plot = () => {
      const { metrics, methods } = curves[model.value], chosen = metrics[metric.value];
      const points = Object.values(chosen.lines).flat();
      const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
      const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
      const x = (v) => LEFT + (v - x0) / (x1 - x0 || 1) * (WIDTH - LEFT - RIGHT);
      const y = (v) => HEIGHT - BOTTOM - (v - y0) / (y1 - y0 || 1) * (HEIGHT - BOTTOM - TOP);
      const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${chosen.name} over training steps` });
      for (const value of [y0, (y0 + y1) / 2, y1]) {
        svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
        svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
      }
      for (const value of [x0, x1]) svg.append(draw("text", { x: x(value), y: HEIGHT - 12, "text-anchor": "middle" }, value));
      svg.append(draw("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 12, "text-anchor": "middle" }, "step of the last stage"));
      for (const one of methods) {
        const line = chosen.lines[one.id];
        if (line) svg.append(draw("polyline", { points: line.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), ...drawnAs(one) }));
      }
      const dot = draw("circle", { r: 4, class: "method", visibility: "hidden" });
      svg.append(dot);
      const told = make("p", { class: "told", "aria-live": "polite", text: "Point at a line or tap it, or focus the chart and use the arrow keys." });
      const all = methods.flatMap((one) => (chosen.lines[one.id] || []).map((p) => [one, p]));
      let current = 0;
      const tell = (index) => {
        current = index;
        const [one, p] = all[index];
        for (const [name, value] of Object.entries({ cx: x(p[0]), cy: y(p[1]), style: `--method: ${one.colour}`, visibility: "visible" })) dot.setAttribute(name, value);
        told.textContent = `${one.label}, step ${p[0]}: ${chosen.name} ${short(p[1])}`;
      };
      const nearest = (event) => {
        const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) / box.width * WIDTH, py = (event.clientY - box.top) / box.height * HEIGHT;
        let best = 0, least = Infinity;
        all.forEach(([, p], i) => { const far = (x(p[0]) - px) ** 2 + (y(p[1]) - py) ** 2; if (far < least) { least = far; best = i; } });
        tell(best);
      };
      for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, nearest);
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("keydown", (event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (move) { event.preventDefault(); tell((current + move + all.length) % all.length); }
      });
      const legend = make("ul", { class: "legend" }, ...methods.filter((one) => chosen.lines[one.id]).map((one) => {
        const swatch = draw("svg", { viewBox: "0 0 40 4", "aria-hidden": "true" });
        swatch.append(draw("line", { x1: 0, x2: 40, y1: 2, y2: 2, ...drawnAs(one) }));
        return make("li", {}, swatch, one.label);
      }));
      place.replaceChildren(svg, legend, told);
    };

    const begin = () => {
      const metrics = Object.entries(curves[model.value].metrics);
      fill(metric, metrics.map(([name, one]) => [name, one.name]));
      metric.disabled = !metrics.length;
      if (metrics.length) plot(); else place.replaceChildren(make("p", { class: "told", text: "No run of this model was trained." }));
    };
    fill(model, Object.entries(curves).map(([name, one]) => [name, one.title]));
    model.closest("label").hidden = Object.keys(curves).length < 2;
    model.addEventListener("change", begin);
    metric.addEventListener("change", plot);
    begin();
  }
})();
