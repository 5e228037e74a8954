// modbus-serial (npm) as a peer. Register n holds n; holding registers can be written. Ends when its standard input does.
//   node modbus_peer.cjs server UNIT          serves a free loopback port and prints it
//   node modbus_peer.cjs client PORT UNIT     does what a JSON line on standard input says, answers with one
const ModbusRTU = require("modbus-serial");
const net = require("net");
const readline = require("readline");

const [kind, first, second] = process.argv.slice(2);

function freePort() {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

async function serve(unit) {
  const written = new Map();
  const value = (address) => written.get(address) ?? address & 0xffff;
  const vector = {
    getHoldingRegister: (address, _unit, done) => done(null, value(address)),
    getInputRegister: (address, _unit, done) => done(null, address & 0xffff),
    setRegister: (address, number, _unit, done) => { written.set(address, number); done(null); },
  };
  const port = await freePort();
  const server = new ModbusRTU.ServerTCP(vector, { host: "127.0.0.1", port, unitID: unit });
  server.on("initialized", () => console.log(port));
  process.stdin.resume().on("end", () => process.exit(0));
}

async function ask(port, unit) {
  const client = new ModbusRTU();
  await client.connectTCP("127.0.0.1", { port });
  client.setID(unit);
  client.setTimeout(2000);
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { call, arguments: given } = JSON.parse(line);
    try {
      const answer = await client[call](...given);
      console.log(JSON.stringify({ data: answer.data ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ error: error.message, code: error.modbusCode ?? null }));
    }
  }
  process.exit(0);
}

if (kind === "server") serve(Number(first)); else ask(Number(first), Number(second));
