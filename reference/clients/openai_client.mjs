// The unmodified `openai` package against a running `gpt4roi serve`.
//
//     node openai_client.mjs http://127.0.0.1:8080/v1 KEY docs/example.png
//
// The server has to serve the embedded model, with KEY. Fails if anything is not as OpenAI's own service has it.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import OpenAI from 'openai';
import { VERSION } from 'openai/version';

const [baseURL, apiKey, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const url = `data:image/png;base64,${(await readFile(picture)).toString('base64')}`;
const octopus = { id: 'region1', box: [8, 14, 54, 59] };
const bread = { id: 'region2', box: [109, 0, 181, 59] };

const { data } = await client.models.list();
const model = data[0].id;
assert.equal((await client.models.retrieve(model)).owned_by, 'gpt4roi');

// Fields that the types don't know are sent as they are; regions stand on the picture's part here.
const messages = [{
  role: 'user',
  content: [
    { type: 'image_url', image_url: { url }, regions: [octopus, bread] },
    { type: 'text', text: 'What is <region2>?' },
  ],
}];
const asking = { model, messages };

const answer = await client.chat.completions.create(asking);
const { message, finish_reason } = answer.choices[0];
assert.equal(message.content, 'A loaf of bread.');
assert.equal(finish_reason, 'stop');
assert.deepEqual(message.regions[0], { ...octopus, coords: 'pixel', origin: 'given' });
assert.ok(message.probability > 0.5 && message.probability < 1, JSON.stringify(message));
assert.equal(answer.usage.prompt_tokens_details.region_tokens, 1);

let text = '';
let usage;
const options = { ...asking, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) {
  text += chunk.choices[0]?.delta.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, 'A loaf of bread.');
assert.ok(usage.completion_tokens > 0);

// The helper puts the pieces together.
const whole = await client.chat.completions.stream(asking).finalChatCompletion();
assert.equal(whole.choices[0].message.content, 'A loaf of bread.');
assert.deepEqual(whole.choices[0].message.regions.map(({ id }) => id), ['region1', 'region2']);
assert.ok(whole.choices[0].message.probability < 1, JSON.stringify(whole.choices[0].message));

// Whoever goes away in the middle is not waited for.
const broken = await client.chat.completions.create({ ...asking, stream: true });
for await (const _ of broken) break;

const create = (changes) => () => client.chat.completions.create({ ...asking, ...changes });
const outside = [{ box: [0, 0, 5000, 10], id: 'region3' }];
await refused(create({ regions: outside }), OpenAI.UnprocessableEntityError, 'invalid_region', 'regions[0].box');
await refused(create({ n: 2 }), OpenAI.BadRequestError, 'unsupported_parameter', 'n');
await refused(create({ temperature: -1 }), OpenAI.BadRequestError, 'invalid_value', 'temperature');
await refused(create({ model: 'gpt-4o' }), OpenAI.NotFoundError, 'model_not_found', 'model');
const stranger = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
await refused(() => stranger.models.list(), OpenAI.AuthenticationError, 'invalid_api_key');

async function refused(call, kind, code, param) {
  const error = await call().then(() => assert.fail(`${code} was expected`), (error) => error);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.code, code);
  if (param) assert.equal(error.param, param);
}

console.log(`openai ${VERSION} for Node: as with OpenAI's own service`);
