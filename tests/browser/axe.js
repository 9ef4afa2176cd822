// node axe.js PAGE...   Accessibility (WCAG A and AA) of built pages, and what they ask of other hosts. Prints JSON: {page: [problem, ...]}.
import {chromium} from 'playwright-core';
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {pathToFileURL} from 'node:url';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox', '--allow-file-access-from-files']});
const found = {};
for (const path of process.argv.slice(2)) {
  const page = await browser.newPage(), problems = [];
  page.setDefaultTimeout(120_000);                                  // a busy machine draws large pages slowly
  page.on('request', r => { if (/^https?:/.test(r.url())) problems.push(`asks another host: ${r.url()}`); });
  await page.goto(pathToFileURL(path).href);
  await page.waitForLoadState('networkidle', {timeout: 20_000}).catch(() => {});   // loaded it is; some pages never call themselves idle
  await page.evaluate(axe);
  const {violations} = await page.evaluate(() => axe.run({runOnly: ['wcag2a', 'wcag2aa']}));
  for (const v of violations)
    for (const n of v.nodes) {
      if (v.id === 'aria-input-field-name' && /noUi-handle/.test(n.html)) continue;   // the slider of ipywidgets itself
      problems.push(`${v.id}: ${n.html.slice(0, 160)}`);
    }
  found[path] = problems;
  await page.close();
}
await browser.close();
console.log(JSON.stringify(found));
