// Builds dist/ out of src/. The same sources give the same bytes, so that CI can compare.
import { build } from 'esbuild';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const LIMIT = 60_000;
const here = new URL('.', import.meta.url).pathname;
const dist = `${here}dist`;

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist);
await build({
  entryPoints: ['main.ts', 'app.css'].map((name) => ({ in: `${here}src/${name}`, out: 'app' })),
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['es2022', 'chrome114', 'firefox125', 'safari17'],
  outdir: dist,
  charset: 'utf8',
  logLevel: 'warning',
});
copyFileSync(`${here}src/index.html`, `${dist}/index.html`);
copyFileSync(`${here}src/icon.svg`, `${dist}/icon.svg`);
copyFileSync(`${here}../../../docs/example.png`, `${dist}/sample.png`);

let total = 0;
for (const name of readdirSync(dist).filter((name) => name !== 'sample.png').sort()) {
  const size = gzipSync(readFileSync(`${dist}/${name}`), { level: 9 }).length;
  total += size;
  console.log(`${name}: ${size} bytes compressed`);
}
console.log(`together: ${total} of ${LIMIT} bytes`);
if (total > LIMIT) process.exit(1);
