// Bundles the unit tests and hands them to node's own test runner.
import { buildSync } from 'esbuild';
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';

const tests = readdirSync('tests').filter((name) => name.endsWith('.test.ts'));
rmSync('.test', { recursive: true, force: true });
buildSync({
  entryPoints: tests.map((name) => `tests/${name}`),
  bundle: true,
  platform: 'node',
  format: 'esm',
  outdir: '.test',
  outExtension: { '.js': '.mjs' },
  sourcemap: 'inline',
});
const files = tests.map((name) => `.test/${name.replace(/ts$/, 'mjs')}`);
process.exit(spawnSync(process.execPath, ['--enable-source-maps', '--test', ...files], { stdio: 'inherit' }).status ?? 1);
