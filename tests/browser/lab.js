// node lab.js   Reads {url, exercise, answer: {find, text}, widget} from stdin; does what a learner does; prints what was seen as JSON.
import {chromium} from 'playwright-core';
import {readFileSync} from 'node:fs';

const job = JSON.parse(readFileSync(0, 'utf8')), seen = {errors: [], dialogs: 0};
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox']});
const page = await browser.newPage({viewport: {width: 1400, height: 1000}});
page.setDefaultTimeout(60_000);
page.on('pageerror', e => seen.errors.push(`page error: ${e.message}`));
page.on('console', m => { if (m.type() === 'error') seen.errors.push(`${m.text()} (${m.location().url})`); });

const outputs = () => page.locator('.jp-Notebook:visible .jp-OutputArea-output');
async function open(path) {
  await page.goto(`${job.url}/lab/tree/${path}?reset`);
  await page.locator('.jp-Notebook:visible').first().waitFor();
  await page.getByText('Python 3 (ipykernel) | Idle').first().waitFor();
  seen.dialogs += await page.locator('.jp-Dialog').count();
}
async function runAll() {
  await page.getByRole('menuitem', {name: 'Run', exact: true}).first().click();
  await page.getByText('Run All Cells', {exact: true}).first().click();
}

try {
  await open(job.exercise);
  await runAll();
  await outputs().filter({hasText: 'NOT YET'}).first().waitFor();
  seen.notYet = await outputs().filter({hasText: 'NOT YET'}).first().innerText();

  const cell = page.locator('.jp-Notebook:visible .jp-CodeCell').filter({hasText: job.answer.find}).first();
  await cell.scrollIntoViewIfNeeded();
  await cell.locator('.cm-content').click();
  await page.keyboard.press('Control+A');
  await page.keyboard.insertText(job.answer.text);
  await runAll();
  await outputs().filter({hasText: /^OK {2}/}).first().waitFor();
  seen.ok = await outputs().filter({hasText: /^OK {2}/}).first().innerText();
  await page.keyboard.press('Control+S');
  await page.locator('.jp-mod-dirty').first().waitFor({state: 'detached'});
  seen.dialogs += await page.locator('.jp-Dialog').count();
  seen.nbgrader = await page.getByText(/nbgrader|Formgrader|Validate/i).count();

  if (job.widget) {
    await open(job.widget);
    await runAll();
    const handle = page.locator('.jp-Notebook:visible .widget-slider .noUi-handle').first();
    await handle.waitFor();
    await handle.scrollIntoViewIfNeeded();
    const area = page.locator('.jp-Notebook:visible .jp-CodeCell').filter({has: page.locator('.widget-slider')}).first();
    const picture = () => area.locator('img').evaluateAll(all => all.map(i => i.src).join('|'));
    await area.locator('img').first().waitFor();
    const before = await picture();
    seen.widget = before.length > 0;
    await handle.press('ArrowRight');
    await page.waitForFunction(([el, was]) => {
      const now = [...el.querySelectorAll('img')].map(i => i.src).join('|');
      return now && now !== was;
    }, [await area.elementHandle(), before]);
    seen.moved = true;
  }
} catch (e) {
  seen.failure = String(e).slice(0, 600);
  if (process.env.SCREENSHOT) await page.screenshot({path: process.env.SCREENSHOT});
}
await browser.close();
console.log(JSON.stringify(seen));
