// Tells the shop which recommendations came into view, each once, together and not more than twice a second.
"use strict";
const list = document.querySelector("[data-recommendation]");
if (list && "IntersectionObserver" in window) {
  let seen = [];
  const tell = () => {
    if (!seen.length) return;
    const body = JSON.stringify({ recommendation_id: list.dataset.recommendation, positions: seen });
    seen = [];
    // keepalive: it arrives even if the visitor leaves the page meanwhile.
    fetch("/seen", { method: "POST", body, keepalive: true, headers: { "Content-Type": "application/json" } });
  };
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        seen.push(Number(entry.target.dataset.position));
      }
    },
    { threshold: 0.5 },
  );
  for (const item of list.children) observer.observe(item);
  setInterval(tell, 500);
  addEventListener("pagehide", tell);
}
