// The program under test, on a port of its own.

import { type ChildProcess, spawn } from 'node:child_process';
import { createServer } from 'node:net';

export interface Server {
  readonly url: string;
  stop(): Promise<void>;
}

/** Starts `gpt4roi serve` (`GPT4ROI_BIN`) with the embedded model, and waits until it is ready. */
export async function startServer(...options: string[]): Promise<Server> {
  const program = process.env.GPT4ROI_BIN;
  const port = String(await freePort());
  const [command, args] = program
    ? [program, ['serve', '--port', port, ...options]] as const
    : [process.execPath, ['tests/mock.mjs', port, ...options]] as const;
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, GPT4ROI_API_KEY: undefined } });
  const url = `http://127.0.0.1:${port}/`;
  await ready(child, url);
  return { url, stop: () => stopped(child) };
}

async function ready(child: ChildProcess, url: string): Promise<void> {
  for (let tries = 0; tries < 300; tries++) {
    if (child.exitCode !== null) throw new Error(`the server ended with ${child.exitCode}`);
    const answer = await fetch(`${url}readyz`).catch(() => null);
    if (answer?.ok) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('the server was not ready within 30 seconds');
}

function stopped(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    child.once('exit', () => resolve());
    child.kill('SIGTERM');
  });
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as { port: number };
      probe.close(() => resolve(port));
    });
  });
}
