/* The deck: one slide at a time, whose number is in the address. */

const slides = [...document.querySelectorAll(".slide")],
  [back, on] = ["back", "on"].map((name) => document.getElementById(name)),
  page = document.documentElement;
let at = 0;

/** Show the slide that the address names, and let whoever listens hear its heading. */
function show() {
  const found = slides.findIndex((slide) => "#" + slide.id === location.hash);
  at = found < 0 ? 0 : found;
  slides.forEach((slide, i) => slide.classList.toggle("current", i === at));
  back.href = "#" + slides[Math.max(0, at - 1)].id;
  on.href = "#" + slides[Math.min(slides.length - 1, at + 1)].id;
  back.hidden = at === 0;
  on.hidden = at === slides.length - 1;
  if (document.activeElement !== back && document.activeElement !== on)
    slides[at]
      .querySelector("h2")
      .focus({ preventScroll: getComputedStyle(document.querySelector("nav")).display !== "none" });
}

function go(to) {
  location.hash = slides[Math.min(slides.length - 1, Math.max(0, to))].id;
}

function note() {
  const noted = page.classList.toggle("noted");
  for (const notes of document.querySelectorAll(".notes")) notes.open = noted;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === " " && event.target.matches("summary")) return; // it opens the notes
  const to = {
    ArrowRight: at + 1,
    PageDown: at + 1,
    " ": at + (event.shiftKey ? -1 : 1),
    ArrowLeft: at - 1,
    PageUp: at - 1,
    Home: 0,
    End: slides.length - 1,
  }[event.key];
  if (event.key === "n") note();
  else if (to === undefined) return;
  else go(to);
  event.preventDefault();
});
addEventListener("hashchange", show);
page.classList.add("deck");
document.querySelector("nav").hidden = false;
show();
