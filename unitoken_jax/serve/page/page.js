// The page: asks the server's own API, shows what comes as it comes, and keeps it in this browser.
// What a model says goes into the page as text (textContent), never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const HISTORY = "unitoken.history", KEY = "unitoken.key", KEPT = 40, PARTIAL_IMAGES = 64;
const WORDS = {
  ask: { label: "Question", button: "Ask", busy: "Answering ..." },
  draw: { label: "What to draw", button: "Draw", busy: "Drawing ..." },
  edit: { label: "What to change", button: "Edit", busy: "Drawing ..." },
};
let chosen = []; // images to send: {name, url}, a data URL each
let running = null; // the AbortController of the request under way
let model = null; // what /v1/models says

// ---- the server

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status says what there is to say */ }
  if (response.status === 401) $("key-field").hidden = false;
  if (response.status === 429) message += ` (again in ${response.headers.get("retry-after")} s)`;
  throw new Error(message);
}

// The objects of a stream of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (!data || data === "[DONE]") continue;
      const object = JSON.parse(data);
      if (object.error) throw new Error(object.error.message);
      yield object;
    }
  }
}

function blobOf(url) {
  const [head, data] = url.split(",");
  return new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: head.slice(5).split(";")[0] });
}

const json = (body) => ({
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
});

// ---- what is asked

function settings(mode) {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  if ($("new-seed").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  return {
    mode, prompt: $("prompt").value.trim(), seed: number("seed") ?? 0, n: number("number") ?? 1,
    guidance: mode === "ask" ? undefined : number("guidance"),
    size: mode === "ask" ? undefined : $("size").value || undefined,
    temperature: mode === "ask" ? number("temperature") ?? 0 : undefined,
    inputs: mode === "draw" ? [] : chosen.map((image) => image.url),
  };
}

function checked(asked) {
  if (!asked.prompt) throw new Error(`${WORDS[asked.mode].label}: write something first.`);
  if (asked.mode === "edit" && !asked.inputs.length) throw new Error("Give the image that is to change.");
}

async function send(asked, show, signal) {
  const drawing = {
    model: model?.id, prompt: asked.prompt, n: asked.n, seed: asked.seed, guidance_scale: asked.guidance,
    size: asked.size, stream: true, partial_images: PARTIAL_IMAGES,
  };
  if (asked.mode === "draw") {
    const response = await ask("/v1/images/generations", { ...json(drawing), signal });
    for await (const event of events(response)) show.image(event);
  } else if (asked.mode === "edit") {
    const form = new FormData();
    for (const [name, value] of Object.entries(drawing)) if (value !== undefined) form.append(name, value);
    for (const url of asked.inputs) form.append("image", blobOf(url), "image");
    const response = await ask("/v1/images/edits", { method: "POST", body: form, signal });
    for await (const event of events(response)) show.image(event);
  } else {
    const images = asked.inputs.map((url) => ({ type: "image_url", image_url: { url } }));
    const response = await ask("/v1/chat/completions", {
      ...json({
        model: model?.id ?? "", stream: true, n: asked.n, seed: asked.seed, temperature: asked.temperature,
        messages: [{ role: "user", content: [...images, { type: "text", text: asked.prompt }] }],
      }),
      signal,
    });
    for await (const chunk of events(response)) for (const choice of chunk.choices) show.text(choice);
  }
}

// ---- what is shown

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function imageOf(url, alt) {
  const image = element("img", { src: url, alt });
  image.addEventListener("load", () => {
    image.parentElement?.classList.toggle("large", image.naturalWidth > 256);
  });
  return image;
}

// An entry of the history, and the functions that fill it while its answer comes.
function entry(asked) {
  const answers = element("div"), images = element("div", { className: "images" });
  const about = element("p", { className: "about" }), actions = element("div", { className: "actions" });
  const article = element("article", {}, element("h3", { textContent: asked.prompt }));
  article.setAttribute("aria-label", `${WORDS[asked.mode].button}: ${asked.prompt}`);
  if (asked.inputs.length) {
    const row = element("div", { className: "asked images" });
    asked.inputs.forEach((url, i) => row.append(imageOf(url, `Image ${i + 1} of the question`)));
    article.append(row);
  }
  article.append(answers, images, about, actions);
  const result = { texts: [], images: [] };

  function frame(index) {
    while (images.children.length <= index) {
      const number = images.children.length;
      const holder = element("div", { className: "frame" });
      const [width, height] = (asked.size ?? "1x1").split("x").map(Number);
      if (width && height) holder.style.aspectRatio = `${width} / ${height}`;
      images.append(element("figure", { ariaLabel: `Image ${number + 1}` }, holder));
    }
    return images.children[index].firstChild;
  }

  function draw(index, url, whole) {
    const alt = whole ? `Drawn: ${asked.prompt}` : `The first rows of: ${asked.prompt}`;
    const holder = frame(index), image = holder.firstChild;
    if (image) Object.assign(image, { src: url, alt });
    else holder.append(imageOf(url, alt));
    if (whole) result.images[index] = url;
  }

  function write(index, text) {
    while (answers.children.length <= index) answers.append(element("p", { className: "answer" }));
    result.texts[index] = (result.texts[index] ?? "") + text;
    answers.children[index].textContent = result.texts[index];
  }

  const show = {
    image(event) {
      draw(event.index ?? 0, `data:image/png;base64,${event.b64_json}`, event.type.endsWith(".completed"));
    },
    text(choice) {
      if (choice.delta.content) write(choice.index, choice.delta.content);
      for (const part of choice.delta.images ?? []) draw(result.images.length, part.image_url.url, true);
    },
  };

  // When all is there: what it was asked with, and what can be done with it.
  function finish(stored) {
    result.texts.forEach((text, i) => { if (!text) write(i, "(no text)"); });
    const words = [`seed ${asked.seed}`];
    if (asked.guidance !== undefined) words.push(`guidance ${asked.guidance}`);
    if (asked.temperature) words.push(`temperature ${asked.temperature}`);
    about.textContent = words.join(", ");
    result.images.forEach((url, i) => {
      const name = `unitoken-${asked.seed}-${i}.png`, which = result.images.length > 1 ? ` ${i + 1}` : "";
      actions.append(
        element("a", { href: url, download: name, textContent: `Save${which}` }),
        button(`Edit${which}`, () => { choose("edit"); setChosen([{ name, url }]); $("prompt").focus(); }),
      );
    });
    actions.append(
      button("Again", () => restore(asked)),
      button("Forget", () => { forget(stored.id); article.remove(); showEmpty(); $("results-title").focus(); }),
    );
  }

  return { article, show, result, finish };
}

function button(text, action) {
  const made = element("button", { type: "button", textContent: text });
  made.addEventListener("click", action);
  return made;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function showEmpty() {
  const none = !$("history").children.length;
  $("empty").hidden = !none;
  $("clear").hidden = none;
}

// ---- history

function stored() {
  try {
    const entries = JSON.parse(localStorage.getItem(HISTORY));
    return Array.isArray(entries) ? entries : [];
  } catch {
    return [];
  }
}

function store(entries) {
  entries = entries.slice(0, KEPT);
  for (;;) {
    try {
      localStorage.setItem(HISTORY, JSON.stringify(entries));
      return;
    } catch { // no room: the oldest goes
      if (!entries.length) return;
      entries.pop();
    }
  }
}

const forget = (id) => store(stored().filter((kept) => kept.id !== id));

function restore(asked) {
  choose(asked.mode);
  $("prompt").value = asked.prompt;
  $("seed").value = asked.seed;
  $("new-seed").checked = false;
  $("number").value = asked.n;
  if (asked.guidance !== undefined) $("guidance").value = asked.guidance;
  if (asked.temperature !== undefined) $("temperature").value = asked.temperature;
  if (asked.size) $("size").value = asked.size;
  setChosen(asked.inputs.map((url) => ({ name: "image", url })));
  $("prompt").focus();
}

function showHistory() {
  for (const { asked, texts, images, id } of stored()) {
    const shown = entry(asked);
    texts.forEach((text, index) => shown.show.text({ index, delta: { content: text } }));
    images.forEach((url, index) => shown.show.image({ type: ".completed", index, b64_json: url.split(",")[1] }));
    shown.finish({ id });
    $("history").append(shown.article);
  }
  showEmpty();
}

// ---- the form

const mode = () => document.querySelector("input[name=mode]:checked").value;

function choose(value) {
  document.querySelector(`input[name=mode][value=${value}]`).checked = true;
  showMode();
}

function showMode() {
  const now = mode();
  $("prompt-label").textContent = WORDS[now].label;
  $("send").textContent = WORDS[now].button;
  $("inputs").hidden = now === "draw";
  for (const field of document.querySelectorAll(".of-images")) field.hidden = now === "ask";
  for (const field of document.querySelectorAll(".of-text")) field.hidden = now !== "ask";
}

function setChosen(images) {
  chosen = images;
  $("chosen").replaceChildren(...images.map((image, i) => {
    const remove = button("Remove", () => { setChosen(chosen.filter((other) => other !== image)); $("files").focus(); });
    remove.setAttribute("aria-label", `Remove image ${i + 1}`);
    return element("li", {}, imageOf(image.url, `Image ${i + 1}: ${image.name}`), remove);
  }));
}

async function add(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!images.length) return;
  if (mode() === "draw") choose("ask");
  const read = images.map((file) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name || "pasted image", url: reader.result });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  }));
  setChosen([...chosen, ...(await Promise.all(read))]);
  say(`${images.length === 1 ? "1 image" : `${images.length} images`} added.`);
}

async function submit(event) {
  event.preventDefault();
  if (running) return;
  let shown;
  try {
    if ($("key").value) sessionStorage.setItem(KEY, $("key").value);
    if (!model) await introduce();
    const asked = settings(mode());
    checked(asked);
    running = new AbortController();
    $("send").disabled = true;
    $("stop").disabled = false;
    say(WORDS[asked.mode].busy);
    shown = entry(asked);
    shown.article.setAttribute("aria-busy", "true");
    $("history").prepend(shown.article);
    showEmpty();
    const start = performance.now();
    await send(asked, shown.show, running.signal);
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    const kept = { id: `${Date.now()}-${Math.random()}`, asked, texts: shown.result.texts, images: shown.result.images };
    store([kept, ...stored()]);
    shown.finish(kept);
    const texts = shown.result.texts.join(" ").slice(0, 500), count = shown.result.images.length;
    say([texts && `Answer: ${texts}`, count && `${count} ${count === 1 ? "image" : "images"} drawn`]
      .filter(Boolean).join(". ") + ` (${seconds} s)`);
  } catch (error) {
    shown?.article.remove();
    showEmpty();
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    running = null;
    $("send").disabled = false;
    $("stop").disabled = true;
    shown?.article.removeAttribute("aria-busy");
  }
}

// Who is there, and when it is ready.
async function introduce() {
  model = (await (await ask("/v1/models")).json()).data[0];
  $("model").textContent = model.id;
  $("guidance").value = model.guidance_scale;
  $("size").replaceChildren(...model.image_sizes.map((size) => element("option", { value: size, textContent: size })));
  for (const value of ["draw", "edit"]) {
    document.querySelector(`input[name=mode][value=${value}]`).disabled = !model.image_sizes.length;
  }
}

async function waitUntilReady() {
  for (;;) {
    const response = await fetch("/health");
    const { status, compiled, programs } = await response.json();
    if (response.ok) return;
    say(status === "starting" ? `The model starts: ${compiled} of ${programs} programs compiled.` : "The server stops.");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function listen() {
  $("form").addEventListener("submit", submit);
  $("stop").addEventListener("click", () => running?.abort());
  $("files").addEventListener("change", () => { add($("files").files); $("files").value = ""; });
  $("clear").addEventListener("click", () => { store([]); $("history").replaceChildren(); showEmpty(); $("prompt").focus(); });
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", showMode);
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") add(event.dataTransfer.files);
    });
  }
}

async function main() {
  $("results-title").tabIndex = -1;
  listen();
  showMode();
  showHistory();
  try {
    await introduce();
    await waitUntilReady();
    say("Ready.");
  } catch (error) {
    say(error.message, true);
  }
}

main();
