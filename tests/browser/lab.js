// node lab.js   Reads {url, exercise, answer: {find, text}, widgets: [path]} from stdin; does what a learner does; prints what was seen as JSON.
import {chromium} from 'playwright-core';
import {readFileSync} from 'node:fs';

const job = JSON.parse(readFileSync(0, 'utf8')), seen = {errors: [], dialogs: 0, pictures: {}, failures: {}};
const browser = await chromium.launch({executablePath: process.env.CHROMIUM, args: ['--no-sandbox']});

// The notebook in a tab and a workspace of its own; the window is so tall that JupyterLab draws every cell.
async function open(path) {
  const page = await browser.newPage({viewport: {width: 1400, height: 12_000}});
  page.setDefaultTimeout(90_000);
  page.on('pageerror', e => seen.errors.push(`${path}: page error: ${e.message}`));
  page.on('console', m => { if (m.type() === 'error') seen.errors.push(`${path}: ${m.text()} (${m.location().url})`); });
  await page.goto(`${job.url}/lab/workspaces/${path.replace(/\W/g, '-')}/tree/${path}?reset`);
  await page.locator('.jp-Notebook:visible').first().waitFor();
  await page.getByText('Python 3 (ipykernel) | Idle').first().waitFor();
  return page;
}
async function menu(page, title, line) {
  await page.getByRole('menuitem', {name: title, exact: true}).first().click();
  await page.getByText(line, {exact: true}).first().click();
}
const outputs = (page, hasText) => page.locator('.jp-Notebook:visible .jp-OutputArea-output').filter({hasText}).first();

// An exercise: run, answered, run again, saved.
async function exercise(page) {
  await menu(page, 'Run', 'Run All Cells');
  await outputs(page, 'NOT YET').waitFor();
  seen.notYet = await outputs(page, 'NOT YET').innerText();
  await page.locator('.jp-Notebook:visible .jp-CodeCell').filter({hasText: job.answer.find}).first().locator('.cm-content').click();
  await page.keyboard.press('Control+A');
  await page.keyboard.insertText(job.answer.text);
  await menu(page, 'Run', 'Run All Cells');
  await outputs(page, /^OK {2}/).waitFor();
  seen.ok = await outputs(page, /^OK {2}/).innerText();
  await page.keyboard.press('Control+S');
  await page.locator('.jp-mod-dirty').first().waitFor({state: 'detached'});
  seen.nbgrader = await page.getByText(/nbgrader|Formgrader|Validate/i).count();
}

// A widget notebook, run to its end: in each cell with a slider, the first slider is moved until another picture stands there.
async function widget(page, path) {
  await menu(page, 'Run', 'Run All Cells');
  await outputs(page, /ran in .* scale smoke/).waitFor();
  for (const cell of await page.locator('.jp-Notebook:visible .jp-CodeCell').filter({has: page.locator('.widget-slider')}).all()) {
    const picture = async () => (await cell.locator('img').evaluateAll(all => all.map(i => i.naturalWidth && i.src))).join('|');
    await cell.locator('img').first().waitFor();
    const before = await picture();
    await cell.locator('.widget-slider .noUi-handle').first().press('ArrowRight');
    await page.waitForFunction(([el, was]) => {
      const all = [...el.querySelectorAll('img')];
      return all.every(i => i.naturalWidth) && all.map(i => i.src).join('|') !== was;
    }, [await cell.elementHandle(), before]);
    seen.pictures[path] = (seen.pictures[path] ?? 0) + 1;
  }
}

async function visit(path) {
  let page;
  try {
    page = await open(path);
    await (path === job.exercise ? exercise(page) : widget(page, path));
    seen.dialogs += await page.locator('.jp-Dialog').count();
    await menu(page, 'Kernel', 'Shut Down Kernel');
    await page.getByText('No Kernel').first().waitFor();
  } catch (e) {
    seen.failures[path] = String(e).slice(0, 600);
    await page?.screenshot({path: process.env.SCREENSHOT});
  }
  await page?.close();
}

// Two tabs at a time: each is a process of its own, and so is its kernel.
const waiting = [job.exercise, ...job.widgets];
const learner = async () => { for (let path; (path = waiting.shift()) !== undefined;) await visit(path); };
await Promise.all([learner(), learner()]);
await browser.close();
console.log(JSON.stringify(seen));
