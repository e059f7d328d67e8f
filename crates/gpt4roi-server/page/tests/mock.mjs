// A stand-in for `gpt4roi serve`, for working on the page without the program: it serves dist/ under
// the same policy and answers with fixed words. `node tests/mock.mjs 8081`.
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname } from 'node:path';

const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8', '.svg': 'image/svg+xml', '.png': 'image/png' };
const FILES = ['index.html', 'app.js', 'app.css', 'icon.svg', 'sample.png'];
const images = new Map();
const KEY = process.argv[3] === '--api-key' && process.argv[4];

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function json(response, status, value) {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
}

/** Width and height of a PNG. */
function sizeOf(bytes) {
  return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) };
}

async function chat(request, response) {
  const { messages, zoom } = JSON.parse(await body(request));
  const [picture, text] = messages[0].content;
  if (!images.has(picture.id)) return json(response, 404, { error: { message: 'no such image', type: 'invalid_request_error', code: 'image_not_found' } });
  const question = messages.length > 1 ? messages.at(-1).content : text.text;
  if (zoom === 'auto' && new Set(question.match(/<region\d+>/g)).size > 16) {
    return json(response, 400, { error: { message: 'zoom: expected auto for a question about at most 16 regions', param: 'zoom', code: 'invalid_value' } });
  }
  const words = answerTo(question, picture.regions).split(/(?<= )/);
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  const send = (delta, rest = {}) => response.write(`data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: null, ...rest }] })}\n\n`);
  for (const word of words) {
    send({ content: word });
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
  const typed = /\[([\d, .]+)\]/.exec(question);
  const found = typed ? [...picture.regions, { id: `region${picture.regions.length + 1}`, box: typed[1].split(',').map(Number) }] : picture.regions;
  const regions = found.map(({ id, box, point, polygon }) => ({ id, box: box ?? around(point ? [point] : polygon) }));
  send({ regions, probability: 0.97 }, { finish_reason: 'stop' });
  response.end('data: [DONE]\n\n');
}

/** Fixed words about what the tests draw on the sample. */
function answerTo(question, regions) {
  const mentions = [...question.matchAll(/<(region\d+)>/g)].map(([, id]) => id);
  const name = (id) => nameOf(regions.find((region) => region.id === id));
  if (/^Where/.test(question)) return 'It is at the top left of the picture.';
  if (mentions.length === 0) return 'An octopus is in this picture, I think.';
  if (mentions.length === 1) return `It is ${name(mentions[0])}, as I see it.`;
  return `${mentions.map((id) => `${id} is ${name(id)}`).join(', ')}.`;
}

function nameOf(region) {
  const [x] = region.box ?? region.point ?? region.polygon[0];
  return x < 100 ? 'an octopus' : 'a loaf of bread';
}

function around(points) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  return [Math.min(...xs) - 10, Math.min(...ys) - 10, Math.max(...xs) + 10, Math.max(...ys) + 10];
}

async function describe(request, response) {
  const { regions } = JSON.parse(await body(request));
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  for (const [index, { id, box, point, polygon }] of regions.entries()) {
    const read = box ?? around(point ? [point] : polygon);
    response.write(`${JSON.stringify({ index, id, box: read, text: `This is ${nameOf(regions[index])}.`, probability: 0.97 })}\n`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  response.end();
}

const server = createServer(async (request, response) => {
  const path = new URL(request.url, 'http://localhost').pathname;
  if (path === '/readyz') return json(response, 200, {});
  if (path.startsWith('/v1') && KEY && request.headers.authorization !== `Bearer ${KEY}`) return json(response, 401, { error: { message: 'expected a valid API key' } });
  if (path.startsWith('/v1/images/')) return json(response, images.delete(decodeURIComponent(path.slice(11))) ? 200 : 404, {});
  if (path === '/v1/models') return json(response, 200, { object: 'list', data: [{ id: 'gpt4roi-nano', object: 'model' }] });
  if (path === '/v1/images') {
    const bytes = await body(request);
    const id = `sha256:${bytes.length}`;
    images.set(id, bytes);
    return json(response, 200, { id, object: 'image', ...sizeOf(bytes) });
  }
  if (path === '/v1/chat/completions') return chat(request, response);
  if (path === '/v1/regions/describe') return describe(request, response);
  const name = path === '/' ? 'index.html' : path.slice(1);
  if (!FILES.includes(name)) return json(response, 404, { error: { message: 'no such page' } });
  response.writeHead(200, { 'content-type': TYPES[extname(name)], 'content-security-policy': POLICY });
  response.end(await readFile(new URL(`../dist/${name}`, import.meta.url)));
});
server.listen(Number(process.argv[2] ?? 8081), '127.0.0.1');
