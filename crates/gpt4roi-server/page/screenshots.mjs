// Takes the pictures of the page in docs/ from a running server: node screenshots.mjs http://127.0.0.1:8080/
// Needs pngquant, which makes them small.
import { chromium } from '@playwright/test';
import { execFileSync } from 'node:child_process';

const url = process.argv[2] ?? 'http://127.0.0.1:8080/';
const docs = new URL('../../../docs/', import.meta.url).pathname;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });

async function shoot(name, options, act) {
  const page = await browser.newPage({ reducedMotion: 'reduce', ...options });
  await page.goto(url);
  await page.getByRole('button', { name: 'Use the sample' }).click();
  await page.getByRole('img', { name: 'sample.png' }).waitFor();
  await act(page);
  await page.waitForTimeout(200);
  const path = `${docs}page-${name}.png`;
  await page.screenshot({ path });
  execFileSync('pngquant', ['--force', '--strip', '--output', path, '128', path]);
  await page.close();
}

/** Drags along pixels of the sample. */
async function drag(page, ...points) {
  const picture = await page.locator('.picture').boundingBox();
  const at = ([x, y]) => [picture.x + (x * picture.width) / 224, picture.y + (y * picture.height) / 224];
  await page.mouse.move(...at(points[0]));
  await page.mouse.down();
  for (const point of points.slice(1)) await page.mouse.move(...at(point), { steps: 4 });
  await page.mouse.up();
}

async function ask(page, text) {
  await page.locator('#question').fill(text);
  await page.keyboard.press('Enter');
  await page.locator('.round:last-child .answer.done').waitFor();
}

async function boxes(page) {
  await drag(page, [8, 14], [54, 59]);
  await drag(page, [109, 0], [181, 59]);
}

await shoot('conversation', { viewport: { width: 1080, height: 660 } }, async (page) => {
  await boxes(page);
  await ask(page, 'What are <region1> and <region2>?');
  await page.getByRole('button', { name: 'Describe all' }).click();
  await page.locator('.round:last-child .answer.done').waitFor();
  await page.locator('.answer [data-chip="1"]').last().hover();
});

await shoot('outline', { viewport: { width: 1080, height: 660 }, colorScheme: 'dark' }, async (page) => {
  await boxes(page);
  await page.keyboard.press('l');
  await drag(page, [0, 85], [40, 97], [88, 76], [104, 79], [102, 100], [78, 128], [103, 182], [92, 184], [58, 146], [30, 168], [42, 184], [32, 187], [12, 168], [1, 150], [46, 118], [1, 98]);
  await page.keyboard.press('p');
  await drag(page, [148, 118], [148, 119]);
  await page.getByRole('button', { name: 'Describe all' }).click();
  await page.locator('.answer.done').waitFor();
  await page.locator('#question').fill('Where is <region4> relative to ');
  await page.keyboard.press('End');
  await page.keyboard.type('@');
});

await shoot('phone', { viewport: { width: 360, height: 700 }, hasTouch: true, isMobile: true, deviceScaleFactor: 1.5 }, async (page) => {
  await boxes(page);
  await ask(page, 'What are <region1> and <region2>?');
});

await browser.close();
