// node axe.js PAGE...   Accessibility (WCAG A and AA) of built pages, and what they ask of other hosts. Prints JSON: {page: [problem, ...]}.
import {chromium} from 'playwright-core';
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--allow-file-access-from-files']});
const found = {};

// The page, drawn and quiet. Chromium now and then loses track of one in a long row of pages: a fresh tab gets it right, a page that is never quiet fails.
async function opened(path, problems, tries = 3) {
  const page = await browser.newPage();
  page.setDefaultTimeout(60_000);
  page.on('request', r => { if (/^https?:/.test(r.url())) problems.push(`asks another host: ${r.url()}`); });
  await page.goto(pathToFileURL(path).href);
  try { await page.waitForLoadState('networkidle'); return page; }
  catch (error) {
    await page.close();
    if (tries > 1) return opened(path, problems, tries - 1);
    throw new Error(`${path} is never quiet: ${error.message}`);
  }
}

async function judged(path) {
  const problems = [], page = await opened(path, problems);
  await page.evaluate(axe);
  const {violations} = await page.evaluate(() => axe.run({runOnly: ['wcag2a', 'wcag2aa']}));
  for (const v of violations)
    for (const n of v.nodes) {
      if (v.id === 'aria-input-field-name' && /noUi-handle/.test(n.html)) continue;   // the slider of ipywidgets itself
      problems.push(`${v.id}: ${n.html.slice(0, 160)}`);
    }
  await page.close();
  return problems;
}

// Two tabs at a time: each is a process of its own.
const waiting = process.argv.slice(2);
const reader = async () => { for (let path; (path = waiting.shift()) !== undefined;) found[path] = await judged(path); };
await Promise.all([reader(), reader()]);
await browser.close();
console.log(JSON.stringify(found));
