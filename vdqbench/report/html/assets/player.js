// Videos side by side: decoded into single frames once, then drawn together, so that all show the same moment by construction.

const MOST_SIDE = 640;
const KEPT_BYTES = 400e6;
const AT_ONCE = 4;
const decoded = new Map();
const waiting = [];
let running = 0;

// The frames of a clip as pictures; the clips used last are kept, as far as memory allows.
function frames(index) {
  const known = decoded.get(index) ?? inTurn(() => decode(DATA.clips[index]));
  decoded.delete(index);
  decoded.set(index, known);
  known.catch(() => decoded.delete(index));
  let bytes = [...decoded.keys()].reduce((sum, key) => sum + size(DATA.clips[key]).bytes, 0);
  for (const key of decoded.keys()) {
    if (bytes <= KEPT_BYTES || key === index) break;
    bytes -= size(DATA.clips[key]).bytes;
    decoded.delete(key);
  }
  return known;
}

// A few at a time: browsers allow a page only so many videos at once.
async function inTurn(work) {
  if (running >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    return await work();
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

// How large a clip's frames are kept.
function size(clip) {
  const scale = Math.min(1, MOST_SIDE / Math.max(clip.width, clip.height));
  const [width, height] = [clip.width, clip.height].map((side) => Math.max(1, Math.round(side * scale)));
  return { width, height, bytes: 4 * width * height * clip.frames };
}

// Each frame is found by seeking to its middle, which no rounding can move to a neighbour.
async function decode(clip) {
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.preload = "auto";
  video.src = clip.source.startsWith("data:") ? blobUrl(clip.source) : clip.source;
  try {
    await once(video, "loadeddata");
    const { width, height } = size(clip);
    const list = [];
    for (let i = 0; i < clip.frames; i += 1) {
      const seeked = once(video, "seeked");
      video.currentTime = (i + 0.5) / clip.fps;
      await seeked;
      list.push(await createImageBitmap(video, width < clip.width ? { resizeWidth: width, resizeHeight: height } : {}));
    }
    return list;
  } finally {
    if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
}

function blobUrl(uri) {
  const bytes = Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
}

function once(video, name) {
  return new Promise((resolve, reject) => {
    const done = (settle, value) => {
      video.removeEventListener(name, good);
      video.removeEventListener("error", bad);
      settle(value);
    };
    const good = () => done(resolve);
    const bad = () => done(reject, new Error(video.error?.message || "this browser cannot play the video"));
    video.addEventListener(name, good);
    video.addEventListener("error", bad);
  });
}

// |a - b| by channel, times a power of two. Composed by the canvas itself, which also works for linked files, whose pixels a
// page from disk may draw but not read; the mean is null there.
function drawDifference(canvas, a, b, gain) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  [canvas.width, canvas.height] = [a.width, a.height];
  context.drawImage(a, 0, 0);
  context.globalCompositeOperation = "difference";
  context.drawImage(b, 0, 0, a.width, a.height);
  const mean = meanOf(context, canvas);
  context.globalCompositeOperation = "lighter";
  for (let done = 1; done < gain; done *= 2) context.drawImage(canvas, 0, 0);
  context.globalCompositeOperation = "source-over";
  return mean;
}

function meanOf(context, canvas) {
  try {
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum += data[i] + data[i + 1] + data[i + 2];
    return sum / (0.75 * data.length);
  } catch (error) {
    if (error.name === "SecurityError") return null;
    throw error;
  }
}

const SPEEDS = [["0.25", "¼ ×"], ["0.5", "½ ×"], ["1", "1 ×"], ["2", "2 ×"]];
const GAINS = [["1", "1 ×"], ["2", "2 ×"], ["4", "4 ×"], ["8", "8 ×"], ["16", "16 ×"], ["32", "32 ×"]];

// A player of one setting. chosen: keys of the cells shown at first; fixed: those cannot be changed.
function player(setting, chosen, fixed = false) {
  const samples = setting.samples.map((sample, i) => ({ ...sample, i })).filter((sample) => sample.clip !== null || clipsOf(setting, sample).size);
  if (!samples.length) return el("p", { class: "quiet" }, noVideos());
  const state = { sample: samples[0], cells: [...chosen], frame: 0, count: 1, fps: 8, speed: 1, playing: false, difference: false, gain: 8, panels: [], turn: 0 };
  const stage = el("div", { class: "stage" });
  const status = el("p", { class: "quiet", role: "status" });
  const play = el("button", { type: "button", class: "play", onclick: toggle }, "Play");
  const back = el("button", { type: "button", onclick: () => step(-1), title: "One frame back (left arrow)" }, "◂ Frame");
  const ahead = el("button", { type: "button", onclick: () => step(1), title: "One frame on (right arrow)" }, "Frame ▸");
  const seek = el("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Frame", oninput: () => { pause(); show(Number(seek.value)); } });
  const clock = el("output", { class: "clock" });
  const difference = el("input", { type: "checkbox", onchange: () => { state.difference = difference.checked; layout(); } });
  const gain = choice("Amplified", GAINS, String(state.gain), (value) => { state.gain = Number(value); show(state.frame); });
  const root = el(
    "div",
    { class: "player", role: "group", "aria-label": "Videos side by side. Space plays and pauses, arrow keys go frame by frame, Home and End to the ends.", tabindex: 0, onkeydown: keys },
    el(
      "div",
      { class: "controls" },
      choice("Prompt", samples.map((sample, i) => [String(i), `${sample.id}${setting.seeds > 1 ? ` · seed ${sample.seed}` : ""}: ${sample.prompt}`]), "0", (value) => { state.sample = samples[Number(value)]; load(); }),
    ),
    fixed ? null : cellPicker(setting, state, load),
    stage,
    el("div", { class: "transport" }, back, play, ahead, seek, clock, choice("Speed", SPEEDS, "1", (value) => { state.speed = Number(value); })),
    el("div", { class: "controls" }, el("label", { class: "check" }, difference, "Difference to the reference"), gain),
    status,
    el("p", { class: "quiet" }, "Shown are small compressed copies, so differences of about one level may be the codec's. Scores are taken from raw frames, never from these."),
  );

  function clipAt(key) {
    if (key === setting.reference) return state.sample.clip ?? clipsOf(setting, state.sample).get(key) ?? null;
    return clipsOf(setting, state.sample).get(key) ?? null;
  }

  async function load() {
    pause();
    state.turn += 1;
    const turn = state.turn;
    const wanted = [];
    if (state.sample.clip !== null) wanted.push({ title: "full precision", subtitle: ["the reference"], index: state.sample.clip, key: setting.reference, reference: true });
    for (const key of state.cells.filter((one) => one !== setting.reference)) {
      const index = clipAt(key);
      if (index !== null) wanted.push({ title: CELLS.get(key).label, subtitle: scoresOf(key), index, key, reference: false });
    }
    status.textContent = `Decoding ${plural(wanted.length, "video", "videos")} …`;
    root.setAttribute("aria-busy", "true");
    const lists = await Promise.all(wanted.map((one) => frames(one.index).then((list) => ({ list }), (error) => ({ error }))));
    if (turn !== state.turn) return;
    root.removeAttribute("aria-busy");
    state.panels = wanted.map((one, i) => ({ ...one, ...lists[i] }));
    state.count = Math.max(1, ...state.panels.map((panel) => panel.list?.length ?? 0));
    state.fps = wanted.length ? DATA.clips[wanted[0].index].fps : 8;
    const broken = state.panels.filter((panel) => panel.error).map((panel) => `${panel.title} cannot be shown: ${panel.error.message}`);
    const missing = state.cells.length - wanted.filter((one) => !one.reference).length - (state.cells.includes(setting.reference) ? 1 : 0);
    if (missing > 0) broken.push(`${plural(missing, "chosen cell has", "chosen cells have")} no copy of this video here`);
    status.textContent = broken.join("; ") || `${plural(state.count, "frame", "frames")} at ${brief(state.fps)} frames a second.`;
    seek.max = state.count - 1;
    layout();
  }

  function scoresOf(key) {
    const video = CELLS.get(key).videos.find((one) => one.id === state.sample.id && one.seed === state.sample.seed);
    const names = Object.keys(video?.values ?? {}).slice(0, 3);
    return names.map((name) => `${SCORES.get(name).label} ${number(video.values[name], SCORES.get(name).digits)}`);
  }

  function layout() {
    stage.style.setProperty("--panels", Math.max(1, state.panels.length));
    stage.replaceChildren(
      ...state.panels.map((panel) => {
        panel.canvas = el("canvas", { role: "img" });
        panel.delta = state.difference && !panel.reference && state.panels[0].reference ? el("canvas", { role: "img", class: "delta" }) : null;
        panel.words = el("span", { class: "quiet" });
        const name = panel.key && CELLS.has(panel.key) ? el("a", { href: cellAddress(panel.key) }, panel.title) : panel.title;
        return el("figure", { class: "panel" }, el("figcaption", {}, el("strong", {}, name)), panel.canvas, el("p", { class: "quiet" }, panel.subtitle.map((text) => el("span", {}, text))), panel.delta, panel.delta ? panel.words : null);
      }),
    );
    gain.hidden = !state.difference;
    show(Math.min(state.frame, state.count - 1));
  }

  function show(frame) {
    state.frame = frame;
    root.dataset.frame = frame;
    seek.value = frame;
    seek.setAttribute("aria-valuetext", `frame ${frame + 1} of ${state.count}`);
    clock.textContent = `${String(frame + 1).padStart(String(state.count).length, "\u2007")} / ${state.count}`;
    const at = (panel) => panel.list?.[Math.min(frame, panel.list.length - 1)];
    for (const panel of state.panels) {
      const picture = at(panel);
      if (!picture) continue;
      if (panel.canvas.width !== picture.width || panel.canvas.height !== picture.height) [panel.canvas.width, panel.canvas.height] = [picture.width, picture.height];
      panel.canvas.getContext("2d").drawImage(picture, 0, 0);
      panel.canvas.dataset.frame = Math.min(frame, panel.list.length - 1);
      panel.canvas.setAttribute("aria-label", `${panel.title}, frame ${frame + 1}`);
      const original = at(state.panels[0]);
      if (!panel.delta || !original) continue;
      const mean = drawDifference(panel.delta, original, picture, state.gain);
      panel.delta.dataset.mean = mean === null ? "" : mean;
      panel.words.textContent = mean === null ? `difference × ${state.gain}` : `difference × ${state.gain}, on average ${mean.toFixed(2)} of 255 levels`;
      panel.delta.setAttribute("aria-label", `${panel.title} minus the reference, frame ${frame + 1}: ${panel.words.textContent}`);
    }
  }

  function step(by) {
    pause();
    show((state.frame + by + state.count) % state.count);
  }

  function toggle() {
    if (state.playing) pause();
    else start();
  }

  function start() {
    if (!state.panels.some((panel) => panel.list)) return;
    state.playing = true;
    root.dataset.playing = "yes";
    play.textContent = "Pause";
    let [last, owed] = [null, 0];
    const tick = (now) => {
      if (!state.playing) return;
      if (!root.isConnected) {
        pause();
        return;
      }
      owed += last === null ? 0 : ((now - last) / 1000) * state.fps * state.speed;
      last = now;
      if (owed >= 1) {
        show((state.frame + Math.floor(owed)) % state.count);
        owed %= 1;
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  function pause() {
    state.playing = false;
    root.dataset.playing = "no";
    play.textContent = "Play";
  }

  function keys(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || ["INPUT", "SELECT", "A", "SUMMARY"].includes(event.target.tagName)) return;
    if (event.key === " " && event.target.tagName === "BUTTON") return;
    const act = { " ": toggle, ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => { pause(); show(0); }, End: () => { pause(); show(state.count - 1); } }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  load();
  return root;
}

// Clips of a sample by the cell's key.
function clipsOf(setting, sample) {
  const found = new Map();
  for (const key of setting.cells) {
    const video = CELLS.get(key).videos.find((one) => one.id === sample.id && one.seed === sample.seed);
    if (video && video.clip !== null) found.set(key, video.clip);
  }
  return found;
}

function cellPicker(setting, state, load) {
  const boxes = setting.cells
    .filter((key) => key !== setting.reference)
    .map((key) => {
      const box = el("input", { type: "checkbox", value: key, checked: state.cells.includes(key) });
      box.addEventListener("change", () => {
        state.cells = boxes.filter((label) => label.firstChild.checked).map((label) => label.firstChild.value);
        load();
      });
      return el("label", { class: "check" }, box, CELLS.get(key).label);
    });
  return el("fieldset", { class: "picker" }, el("legend", {}, "Beside the reference"), boxes);
}

function noVideos() {
  return DATA.videos.most === 0 ? "This page was made without videos: videos=4 puts some in." : "No copy of a video was found for these cells.";
}

function videosNote() {
  if (DATA.videos.linked) return "Videos are linked: they are shown as long as this page lies where it was written.";
  const { most } = DATA.videos;
  return most === null ? "All videos are within this page." : `The first ${plural(most, "video", "videos")} of each cell ${most === 1 ? "is" : "are"} within this page (videos=${most}).`;
}

// The view of all settings.
function videosView() {
  const host = el("div");
  if (!DATA.settings.length) return [el("p", { class: "quiet" }, "No cell is done yet.")];
  const open = (key) => {
    const setting = SETTINGS.get(key);
    const first = setting.cells.filter((one) => one !== setting.reference).slice(0, 3);
    host.replaceChildren(player(setting, first));
  };
  open(DATA.settings[0].key);
  const settings = DATA.settings.map((setting) => [setting.key, setting.label]);
  return [el("p", { class: "quiet" }, videosNote()), settings.length > 1 ? el("div", { class: "controls" }, choice("Setting", settings, settings[0][0], open)) : el("p", {}, settings[0][1]), host];
}
