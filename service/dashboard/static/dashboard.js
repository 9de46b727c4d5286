// Keeps the live parts of a page honest: htmx asks for them anew, this says so when no answer comes.
(() => {
  "use strict";
  const note = document.getElementById("stale");
  const fresh = new Map(); // id of a part -> when it was last as the server said
  const shown = new Map(); // id of a part -> the text that it shows
  const failing = new Set();
  const parts = () => document.querySelectorAll(".live");
  const clock = (moment) => moment.toISOString().slice(11, 19) + " UTC";

  // Whoever does not see the page is told what has changed, once; a live region in a part would be read out at each swap.
  const telling = () => [...document.querySelectorAll(".live [data-announce]")].map((one) => one.dataset.announce).join(". ");
  let told = telling();
  const tell = () => {
    const now = telling();
    if (now !== told) document.getElementById("announce").textContent = told = now;
  };

  const say = () => {
    for (const part of parts()) part.classList.toggle("out-of-date", failing.has(part.id));
    if (!failing.size) {
      note.hidden = true;
      return;
    }
    const since = new Date(Math.min(...[...failing].map((id) => fresh.get(id).getTime())));
    note.textContent = `Not up to date since ${clock(since)}: the server or its store does not answer. Trying again.`;
    note.hidden = false;
  };
  const failed = (event) => {
    const id = event.detail.target && event.detail.target.id;
    if (fresh.has(id)) failing.add(id);
    say();
  };
  for (const part of parts()) fresh.set(part.id, new Date());
  // What stands before the server may answer with nothing, or with a page of its own, and call it well.
  const isPart = (text) => text.trim() !== "" && !/^\s*<(!doctype|html)/i.test(text);

  // A part is left alone while nobody sees it, somebody types into a form of it, or text in it is marked to be copied.
  const inUse = (part) => {
    const marked = getSelection();
    return part.querySelector("details[open] form") || (!marked.isCollapsed && part.contains(marked.anchorNode));
  };
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.detail.target;
    if (fresh.has(part.id) && (document.hidden || inUse(part))) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) for (const part of parts()) part.dispatchEvent(new Event("refresh"));
  });
  const named = (one) => one.id || `${one.tagName} ${one.getAttribute("href") || one.textContent.trim()}`;
  const reachable = (part, name) => [...part.querySelectorAll("a, summary, button, [tabindex]")].filter((one) => named(one) === name);
  const scrolled = new Map();
  let focused = null; // by name, and the how manyth of that name
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const { target, serverResponse, shouldSwap, xhr } = event.detail;
    if (!fresh.has(target.id) || !shouldSwap) return;
    if (xhr.status !== 200 || !isPart(serverResponse)) {
      event.detail.shouldSwap = false;
      failed(event);
      return;
    }
    if (inUse(target)) {
      event.detail.shouldSwap = false;
      return;
    }
    fresh.set(target.id, new Date());
    failing.delete(target.id);
    say();
    if (shown.get(target.id) === serverResponse) event.detail.shouldSwap = false;
    shown.set(target.id, serverResponse);
    const name = named(document.activeElement);
    focused = target.contains(document.activeElement) ? [name, reachable(target, name).indexOf(document.activeElement)] : null;
    for (const box of target.querySelectorAll(".scroll")) scrolled.set(box.id, box.scrollLeft);
    for (const box of target.querySelectorAll("details[id]")) scrolled.set(box.id, box.open);
  });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    const part = event.detail.target;
    for (const box of part.querySelectorAll(".scroll")) box.scrollLeft = scrolled.get(box.id) || 0;
    for (const box of part.querySelectorAll("details[id]")) box.open = scrolled.get(box.id) || false;
    const again = focused && reachable(part, focused[0])[focused[1]]; // who walks by keyboard stays where they were
    if (again) again.focus({ preventScroll: true });
    focused = null;
    tell();
  });
  for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
    document.body.addEventListener(name, failed);
  }
})();
