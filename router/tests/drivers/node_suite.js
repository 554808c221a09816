// node-postgres through the router: simple and prepared queries, cursors, COPY streams, pools. Run by drivers/main.rs.
'use strict';
const assert = require('node:assert/strict');
const { once } = require('node:events');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');
const { createRequire } = require('node:module');
const load = createRequire(process.env.STEMMA_NODE_MODULES + '/x.js');
const pg = load('pg');
const Cursor = load('pg-cursor');
const copy = load('pg-copy-streams');

const mode = process.env.STEMMA_MODE;
const base = { connectionString: process.env.STEMMA_DSN_URL };
const scenarios = [];
const scenario = (name, body) => scenarios.push([name, body]);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function within(body, options = {}) {
  const client = new pg.Client({ ...base, ...options });
  await client.connect();
  try {
    return await body(client);
  } finally {
    await client.end();
  }
}
const one = async (client, text, values) => Object.values((await client.query(text, values)).rows[0])[0];
const refused = async (promise, code) => {
  await assert.rejects(promise, (error) => error.code === code || assert.fail(`${error.code}: ${error.message}`));
};

scenario('prepared statements', () => within((client) => within(async (other) => {
  for (let n = 0; n < 30; n++) {
    if (n % 5 === 4) await other.query(n % 2 ? 'ROLLBACK' : 'BEGIN; SELECT 1');
    const plus = await client.query({ name: 'plus', text: 'SELECT $1::int + 1 AS sum', values: [n] });
    assert.equal(plus.rows[0].sum, n + 1);
    const minus = await client.query({ name: 'minus', text: 'SELECT $1::int - 1 AS sum', values: [n] });
    assert.equal(minus.rows[0].sum, n - 1);
  }
  // The same name, another text, on another connection.
  const mine = await other.query({ name: 'plus', text: "SELECT $1::text || '!' AS sum", values: ['x'] });
  assert.equal(mine.rows[0].sum, 'x!');
})));

scenario('prepared by SQL', () => within(async (client) => {
  await client.query('PREPARE twice (int) AS SELECT $1 * 2 AS n');
  assert.equal((await client.query('EXECUTE twice(21)')).rows[0].n, 42);
  await client.query('DEALLOCATE twice');
  await refused(client.query('EXECUTE twice(21)'), '26000');
  await client.query({ name: 'mine', text: 'SELECT 1 AS n' });
  await client.query('DEALLOCATE mine');
  await refused(client.query('DEALLOCATE mine'), '26000');
}));

scenario('queries sent without waiting', () => within(async (client) => {
  await client.query('CREATE TABLE piped (a int)');
  const answers = [];
  for (let n = 0; n < 200; n++) {
    answers.push(client.query('SELECT $1::int AS n', [n]).then((result) => result.rows[0].n));
    if (n % 20 === 0) answers.push(client.query('INSERT INTO piped VALUES ($1) RETURNING a', [n]).then(() => n));
    if (n % 20 === 0) answers.push(client.query('SELECT max(a) AS n FROM piped').then((result) => result.rows[0].n));
    if (n % 20 === 0) answers.push(client.query('SELECT 1/0').then(() => assert.fail('divided by zero'), (error) => { assert.equal(error.code, '22012'); return n; }));
  }
  const found = await Promise.all(answers);
  for (let n = 0; n < 200; n += 20) assert.equal(found.filter((each) => each === n).length, 4, `${n} in ${found}`);
}));

scenario('COPY in and out', () => within(async (client) => {
  await client.query('CREATE TABLE copied (a int, b text)');
  const lines = Array.from({ length: 20000 }, (_, n) => `${n}\ttext ${n}\n`);
  await pipeline(Readable.from(lines), client.query(copy.from('COPY copied FROM STDIN')));
  const chunks = [];
  for await (const chunk of client.query(copy.to('COPY copied TO STDOUT'))) chunks.push(chunk);
  assert.equal(Buffer.concat(chunks).toString(), lines.join(''));
  const bad = pipeline(Readable.from(Array(5000).fill('no number\tx\n')), client.query(copy.from('COPY copied FROM STDIN')));
  await assert.rejects(bad, (error) => error.code === '22P02');
  assert.equal(Number(await one(client, 'SELECT count(*) FROM copied')), 20000);
}));

scenario('cancel', () => within((client) => within(async (innocent) => {
  const calm = innocent.query("SELECT pg_sleep(1), 'calm' AS word");
  const slow = client.query('SELECT pg_sleep(30)');
  await pause(500);
  const canceller = new pg.Client(base);
  // The driver's own way to send a cancel request.
  canceller.processID = client.processID;
  const socket = new pg.Connection({});
  socket.connect(canceller.connectionParameters.port, canceller.connectionParameters.host);
  await once(socket, 'connect');
  socket.cancel(client.processID, client.secretKey);
  await refused(slow, '57014');
  assert.equal((await calm).rows[0].word, 'calm');
  assert.equal(await one(client, 'SELECT 1'), 1);
})));

scenario('errors and what follows', () => within(async (client) => {
  for (let n = 0; n < 20; n++) {
    await refused(client.query('SELECT 1/$1::int', [0]), '22012');
    await refused(client.query('SELEC nonsense'), '42601');
    await refused(client.query({ name: `bad${n}`, text: 'SELECT * FROM nowhere' }), '42P01');
    assert.equal(await one(client, 'SELECT $1::int', [n]), n);
  }
  const results = await client.query('SELECT 1 AS a; SELECT 2 AS a');
  assert.deepEqual(results.map((result) => result.rows[0].a), [1, 2]);
}));

scenario('settings follow', () => within((client) => within(async (other) => {
  await client.query('CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.here (a int)');
  await client.query('SET search_path TO elsewhere');
  for (let n = 0; n < 10; n++) {
    assert.equal(Number(await one(client, 'SELECT count(*) FROM here')), 0);
    assert.equal(await one(client, 'SHOW application_name'), 'follower');
    assert.equal(await one(client, 'SHOW statement_timeout'), '50s');
    assert.equal(await one(other, 'SHOW application_name'), '');
    assert.equal(await one(other, 'SHOW statement_timeout'), '0');
    assert.equal(await one(other, "SELECT to_regclass('here')"), null);
  }
}), { application_name: 'follower', statement_timeout: 50000 }));

scenario('transactions and savepoints', () => within(async (client) => {
  await client.query('CREATE TABLE kept (a int)');
  await client.query('BEGIN');
  await client.query('INSERT INTO kept VALUES (1)');
  for (let n = 0; n < 3; n++) {
    await client.query('SAVEPOINT s');
    await client.query("SET work_mem = '8MB'");
    await refused(client.query('SELECT 1/0'), '22012');
    await refused(client.query('SELECT 1'), '25P02');
    await client.query('ROLLBACK TO s');
    assert.equal(await one(client, 'SHOW work_mem'), '4MB');
  }
  await client.query('INSERT INTO kept VALUES (3)');
  await client.query('COMMIT');
  assert.deepEqual((await client.query('SELECT a FROM kept ORDER BY a')).rows.map((row) => row.a), [1, 3]);
}));

// Its binary mode reads numbers as text, with a server directly too, so that is not asked for.
scenario('types', () => within(async (client) => {
  const bytes = Buffer.from(Array.from({ length: 10240 }, (_, n) => n % 256));
  const result = await client.query({
    text: 'SELECT $1::bytea AS a, $2::int[] AS b, $3::float8 AS c, $4::text AS d, $5::bool AS e',
    values: [bytes, [1, 2, 3], 0.1, '\u20ac', true],
  });
  const row = result.rows[0];
  assert.deepEqual([Buffer.compare(row.a, bytes), row.b, row.c, row.d, row.e], [0, [1, 2, 3], 0.1, '\u20ac', true]);
  assert.deepEqual(await one(client, 'SELECT $1::jsonb', [{ a: [1, null] }]), { a: [1, null] });
}));

scenario('large rows and cursors', () => within(async (client) => {
  const text = 'z'.repeat(5_000_000);
  assert.equal(await one(client, 'SELECT $1::text', [text]), text);
  await client.query('BEGIN');
  const cursor = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'));
  let sum = 0;
  for (let rows = await cursor.read(70); rows.length > 0; rows = await cursor.read(70)) for (const row of rows) sum += row.n;
  assert.equal(sum, 500500);
  await cursor.close();
  await client.query('COMMIT');
  // A portal outside of a transaction lives until its Sync, which this driver sends when all is read.
  const early = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'));
  assert.equal((await early.read(10)).length, 10);
  await early.close();
  assert.equal(await one(client, 'SELECT 4'), 4);
}));

scenario('notifications', () => within((listener) => within(async (speaker) => {
  await listener.query('LISTEN news');
  for (let n = 0; n < 3; n++) {
    const heard = once(listener, 'notification');
    await speaker.query("SELECT pg_notify('news', $1)", [String(n)]);
    assert.equal((await heard)[0].payload, String(n));
  }
  await listener.query('UNLISTEN *');
})));

scenario('the driver\'s own pool', async () => {
  const pool = new pg.Pool({ ...base, max: 8 });
  await pool.query('CREATE TABLE counted (a int)');
  await Promise.all(Array.from({ length: 16 }, async (_, n) => {
    for (let turn = 0; turn < 20; turn++) {
      const client = await pool.connect();
      await client.query('BEGIN');
      await client.query('INSERT INTO counted VALUES ($1)', [n * 100 + turn]);
      await client.query('COMMIT');
      client.release();
      assert.equal(await one(pool, 'SELECT $1::int', [n]), n);
    }
  }));
  assert.equal(Number(await one(pool, '/*+ route=primary */ SELECT count(*) FROM counted')), 320);
  await pool.end();
});

scenario('connections come and go, and servers too', async () => {
  for (let n = 0; n < 40; n++) await within(async (client) => assert.equal(await one(client, 'SELECT $1::int', [n]), n));
  await within((client) => within(async (killer) => {
    // Its transaction keeps it on a server of its own.
    await killer.query('BEGIN; SELECT 1');
    for (let n = 0; n < 3; n++) {
      const pid = await one(client, 'SELECT pg_backend_pid()');
      await killer.query('SELECT pg_terminate_backend($1)', [pid]);
      assert.equal(await one(client, 'SELECT 6'), 6, 'the router replaced the server');
    }
  }));
});

(async () => {
  let failed = 0;
  for (const [name, body] of scenarios) {
    if (!name.includes(process.env.STEMMA_SCENARIO ?? '')) continue;
    const began = Date.now();
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('not done in 60 s')), 60000); });
    try {
      await Promise.race([body(), late]);
      console.log(`ok ${name} ${(Date.now() - began) / 1000}`);
    } catch (error) {
      failed++;
      console.log(`FAILED ${name}\n${error.stack}`);
    } finally {
      clearTimeout(timer);
    }
  }
  console.log(`${scenarios.length - failed} passed, ${failed} failed`);
  process.exit(failed > 0 ? 1 : 0);
})();
