// node axe.js PAGE...   Built pages as people meet them: accessibility (WCAG A and AA), what they ask of other hosts, and whether they fit a phone.
// Prints JSON: {page: [problem, ...]}.
import {chromium} from 'playwright-core';
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--allow-file-access-from-files']});
const desk = {width: 1280, height: 720}, phone = {width: 375, height: 812}, found = {};

// Formulas are set, and each widget stands where the page has its state.
const drawn = async () => {
  await window.MathJax?.startup?.promise;
  const wanted = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length;
  while (document.querySelectorAll('.widget-subarea').length < wanted) await new Promise(r => setTimeout(r, 50));
};

// Code has thousands of coloured words, and axe looks at each. Those of the same colours and size on the same ground are judged once: the others become
// plain words of their line. The strokes of a formula go too: its picture is hidden from screen readers, who get the formula in words. The list of all pages
// stands on each of them: on the first page it is judged whole, elsewhere the line of the page itself.
const once = () => {
  const look = e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor, s.fontSize, s.fontWeight, s.opacity].join(); };
  const words = [...document.querySelectorAll('.highlight pre span, dt.sig span')].filter(e => !e.childElementCount && e.textContent.trim());
  const seen = new Set(), looks = words.map(e => look(e) + look(e.closest('pre, dt')));
  words.forEach((e, i) => { if (seen.has(looks[i])) e.replaceWith(...e.childNodes); else seen.add(looks[i]); });
  if (!location.pathname.endsWith('/index.html')) document.querySelectorAll('.bd-sidebar-primary li:not(.current)').forEach(e => e.remove());
  document.querySelectorAll('mjx-container > svg[aria-hidden="true"]').forEach(e => e.replaceChildren());
};

// Everything that makes the page itself, and not a box within it, scroll sideways.
const tooWide = () => {
  const pages = [document.scrollingElement, ...document.querySelectorAll('main, main .bd-content, .bd-article-container')].filter(e => e.scrollWidth > e.clientWidth + 1);
  const boxed = e => { for (let p = e.parentElement; p && !pages.includes(p); p = p.parentElement) if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
  const out = pages.length ? [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !boxed(e)) : [];
  return pages.map(p => `wider than a phone: ${p.className || p.tagName} is ${p.scrollWidth} pixels wide`).concat(out.slice(0, 5).map(e => `sticks out: ${e.outerHTML.slice(0, 160)}`));
};

async function judged(tab, path) {
  const problems = [], listen = r => { if (/^https?:/.test(r.url())) problems.push(`asks another host: ${r.url()}`); };
  tab.on('request', listen);
  await tab.goto(pathToFileURL(path).href);
  await tab.evaluate(drawn);
  await tab.setViewportSize(phone);
  problems.push(...await tab.evaluate(tooWide));
  await tab.setViewportSize(desk);
  await tab.evaluate(once);
  await tab.evaluate(axe);
  const {violations} = await tab.evaluate(() => axe.run({runOnly: ['wcag2a', 'wcag2aa'], resultTypes: ['violations']}));
  for (const v of violations)
    for (const n of v.nodes) {
      if (v.id === 'aria-input-field-name' && /noUi-handle/.test(n.html)) continue;   // the slider of ipywidgets itself
      problems.push(`${v.id}: ${n.html.slice(0, 160)}`);
    }
  tab.off('request', listen);
  return problems;
}

// Two tabs at a time: each is a process of its own.
const waiting = process.argv.slice(2);
async function reader() {
  const tab = await browser.newPage({viewport: desk});
  tab.setDefaultTimeout(60_000);
  for (let path; (path = waiting.shift()) !== undefined;) found[path] = await judged(tab, path);
}
await Promise.all([reader(), reader()]);
await browser.close();
console.log(JSON.stringify(found));
