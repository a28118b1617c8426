// The page: what is on it, and what happens when it is used.

import { ApiError, chat, contentPart, messages, servedModel } from "./api.js";
import { percent } from "./element.js";
import { asShown, isClip, readMedium, takeFiles } from "./media.js";
import { mostImportant, numKept, readClips, redrawMedia, showMedia } from "./overlay.js";
import { longestStage, scale, shortNumber, showDecision, showSaved, showStages, showWho } from "./report.js";

const at = (id) => document.getElementById(id);
const ALONE = { no_guidance: true, no_early_exit: true };
const UNKNOWN = "the engine's own";

const state = {
  key: "", // of the API; nowhere else
  model: "",
  media: [], // pictures, then clips, as `readMedium` has them
  retention: null, // null until the slider was moved: the engine's own
  threshold: null,
  turns: [], // {question, answer} before the last answer
  last: null, // {media, request, question, text, report, finish}: the answer that is shown
  tokens: null, // over the media, as `showMedia` takes them
  reading: Promise.resolve(), // ends when all files that came are in `media`
  running: null, // what stops the answer that is streaming
};

async function connect() {
  try {
    state.model = await servedModel(state.key);
    at("model").textContent = state.model;
    at("key-form").hidden = true;
  } catch (error) {
    showError(error);
  }
}

function showError(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
  if (error instanceof ApiError && error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

// In the order in which they came.
function addFiles(files) {
  state.reading = state.reading.then(() => readFiles(files));
}

async function readFiles(files) {
  at("error").hidden = true;
  for (const file of files) {
    try {
      const all = [...state.media, await readMedium(file)];
      state.media = [...all.filter((medium) => !isClip(medium)), ...all.filter(isClip)];
    } catch (error) {
      showError(error);
    }
  }
  if (files.length) drawBare();
}

function removeMedium(medium) {
  state.media = state.media.filter((one) => one !== medium);
  drawBare();
  at("choose").focus();
}

function drawBare() {
  state.tokens = null;
  showMedia(at("media"), state.media, null, removeMedium);
  showSliders();
}

// Streams one answer into a pane -> {text, report, finish}, or null if there is none.
async function stream(pane, request, status) {
  const text = pane.querySelector(".text");
  text.textContent = "";
  text.setAttribute("aria-busy", "true");
  setRunning(new AbortController());
  at("error").hidden = true;
  at("status").textContent = status;
  let report = null;
  let finish = null;
  try {
    for await (const chunk of chat(request, state.key, state.running.signal)) {
      const choice = chunk.choices[0];
      text.append(choice?.delta.content ?? "");
      finish = choice?.finish_reason ?? finish;
      report = chunk.sgl ?? report;
    }
    at("status").textContent = "Done.";
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") showError(error);
    report = null;
  }
  text.setAttribute("aria-busy", "false");
  setRunning(null);
  return report && { text: text.textContent, report, finish };
}

function setRunning(controller) {
  const hadFocus = [at("ask"), at("stop"), at("compare")].includes(document.activeElement);
  state.running = controller;
  for (const name of ["ask", "compare"]) at(name).disabled = controller !== null;
  at("stop").disabled = controller === null;
  // A button that is disabled loses the focus.
  if (hadFocus) (controller ? at("stop") : at("question")).focus();
}

async function ask() {
  const question = at("question").value.trim();
  await state.reading;
  if (!state.model) await connect();
  if (state.running || !question || !state.model) return;
  keepTurn();
  clearAnswer();
  const { media } = state;
  const request = {
    model: state.model,
    messages: messages(media.map(part), state.turns, question),
    sgl: { ...settings(), return_importance: true, return_kept: true },
  };
  const answer = await stream(at("guided"), request, "Asking both models…");
  state.last = answer && { ...answer, media, request, question };
  at("follow").disabled = at("compare").disabled = answer === null;
  if (answer) await showAnswer();
}

const part = (medium) => contentPart(isClip(medium) ? "video_url" : "image_url", medium.url);

// What a follow-up follows; without one, the conversation starts again.
function keepTurn() {
  const { last } = state;
  if (!at("follow").checked) state.turns = [];
  else if (last) state.turns.push({ question: last.question, answer: last.text });
  const items = state.turns.map(({ question, answer }) => {
    const item = document.createElement("li");
    item.textContent = `${question}\n${answer}`;
    return item;
  });
  at("turns").replaceChildren(...items);
}

function clearAnswer() {
  state.last = null;
  const places = document.querySelectorAll(".who, .decision, .stages, #alone .text, #saved");
  for (const place of places) place.replaceChildren();
  drawBare();
}

// Of the question.
function settings() {
  const given = { ...asShown(state.media) };
  if (state.retention !== null) given.retention_ratio = state.retention;
  if (state.threshold !== null) given.exit_threshold = state.threshold;
  return given;
}

async function showAnswer() {
  const { last } = state;
  const { report, media } = last;
  if (report.decision) [at("threshold").min, at("threshold").max] = scale(report.decision);
  showSliders();
  showFacts(at("guided"), last, longestStage(report));
  if (!report.boxes) return;
  const clips = await readClips(media, report);
  if (last !== state.last || media !== state.media) return;
  const { boxes, pictures, times } = report;
  state.tokens = { boxes, pictures, times, kept: keptAt(report, movedRetention()), clips };
  showMedia(at("media"), media, state.tokens, removeMedium);
  showSliders();
}

function showFacts(pane, { report, finish }, longest) {
  showWho(pane.querySelector(".who"), report, finish);
  showStages(pane.querySelector(".stages"), report, longest);
}

// Both sliders where they stand, and all that follows from them.
function showSliders() {
  const report = state.last?.report;
  const retention = state.retention ?? report?.retention_ratio ?? null;
  const threshold = state.threshold ?? report?.decision?.exit_threshold ?? null;
  showSlider("retention", retention, retention === null ? UNKNOWN : `${percent(retention)}${keptText()}`);
  showSlider("threshold", threshold, threshold === null ? UNKNOWN : shortNumber(threshold));
  at("kept-note").textContent = keptNote(report);
  if (report) showDecision(at("guided").querySelector(".decision"), report, threshold);
}

function showSlider(name, value, text) {
  if (value !== null) at(name).value = value;
  at(name).setAttribute("aria-valuetext", text);
  at(`${name}-value`).textContent = text;
}

const keptText = () => (state.tokens ? `, ${state.tokens.kept.size} of ${state.tokens.boxes.length} tokens` : "");

function keptNote(report) {
  if (!state.tokens) return report?.visual_tokens && !report.boxes ? "Nothing ranked the visual tokens." : "";
  if (report.answered_by === "small")
    return "The small model saw all of it; bright is what the large one would have kept.";
  if (state.tokens.kept.size === report.kept.length) return "Bright is what the large model kept.";
  return "Bright is what the large model would keep, by the same importance.";
}

// Where the slider was moved to since the question, or null.
function movedRetention() {
  return state.retention === (state.last.request.sgl.retention_ratio ?? null) ? null : state.retention;
}

// -> the tokens that the answer kept, or would have at the slider's retention.
function keptAt({ answered_by: answeredBy, kept, importance }, retention = null) {
  const isLarge = answeredBy === "large";
  if (isLarge && retention === null) return new Set(kept);
  const count = numKept(importance.length, retention ?? Number(at("retention").value));
  return isLarge && count === kept.length ? new Set(kept) : mostImportant(importance, count);
}

function moveRetention() {
  state.retention = Number(at("retention").value);
  if (state.tokens) {
    state.tokens.kept = keptAt(state.last.report, state.retention);
    redrawMedia(at("media"), state.media, state.tokens);
  }
  showSliders();
}

function moveThreshold() {
  state.threshold = Number(at("threshold").value);
  showSliders();
}

async function compare() {
  const { last } = state;
  const request = { ...last.request, sgl: { ...asShown(last.media), ...ALONE } };
  at("saved").replaceChildren();
  const alone = await stream(at("alone"), request, "Asking the large model alone…");
  if (!alone || last !== state.last) return;
  const longest = longestStage(last.report, alone.report);
  showFacts(at("guided"), last, longest);
  showFacts(at("alone"), alone, longest);
  showSaved(at("saved"), last.report, alone.report, last.text === alone.text);
}

function start() {
  takeFiles(at("choose"), at("drop"), addFiles);
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    state.key = at("key").value.trim();
    at("error").hidden = true;
    connect();
  });
  at("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("ask-form").requestSubmit();
  });
  at("stop").addEventListener("click", () => state.running?.abort());
  at("compare").addEventListener("click", compare);
  at("retention").addEventListener("input", moveRetention);
  at("threshold").addEventListener("input", moveThreshold);
  showSliders();
  connect();
}

start();
