// An OPC UA server of another make (node-opcua) for tests: prints one line of JSON when it listens, takes commands on its
// standard input (NAME VALUE sets a variable), and ends with it.
"use strict";
const opcua = require("node-opcua");
const readline = require("node:readline");

const { DataType, StatusCodes } = opcua;
const [port, folder] = [Number(process.argv[2]), process.argv[3]];

async function main() {
  const certificates = new opcua.OPCUACertificateManager({ rootFolder: folder, automaticallyAcceptUnknownCertificate: true });
  await certificates.initialize();
  const server = new opcua.OPCUAServer({
    port,
    hostname: "127.0.0.1",
    serverInfo: { applicationUri: "urn:test:peer" },
    serverCertificateManager: certificates,
    allowAnonymous: true,
    userManager: { isValidUser: (name, password) => name === "operator" && password === "pass" },
    serverCapabilities: { operationLimits: { maxNodesPerRead: 7, maxMonitoredItemsPerCall: 5, maxNodesPerTranslateBrowsePathsToNodeIds: 3 } },
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  space.registerNamespace("urn:test:before"); // so that indices differ from those of a fresh server
  const own = space.registerNamespace("urn:test:device");
  const other = space.registerNamespace("urn:test:other");
  const load = own.addObject({ organizedBy: space.rootFolder.objects, browseName: "Load" });
  const variables = {};
  for (const [name, type, value] of [
    ["double", DataType.Double, 1.5], ["float", DataType.Float, 2.5], ["boolean", DataType.Boolean, true],
    ["int16", DataType.Int16, -3], ["uint16", DataType.UInt16, 4], ["int32", DataType.Int32, -5],
    ["uint32", DataType.UInt32, 6], ["int64", DataType.Int64, [0xffffffff, 0xfffffff9]], ["uint64", DataType.UInt64, [0, 8]],
  ]) {
    variables[name] = own.addVariable({
      componentOf: load, browseName: name, nodeId: `s=Load.${name}`, dataType: type, minimumSamplingInterval: 100,
      value: { dataType: type, arrayType: opcua.VariantArrayType.Scalar, value },
    });
  }
  variables.power = other.addVariable({
    componentOf: load, browseName: "Power", dataType: DataType.Double, value: { dataType: DataType.Double, value: 77.5 },
  });
  variables.doubtful = own.addVariable({ componentOf: load, browseName: "doubtful", nodeId: "s=Load.doubtful", dataType: DataType.Double });
  variables.doubtful.setValueFromSource({ dataType: DataType.Double, value: 9 }, StatusCodes.UncertainLastUsableValue);
  variables.broken = own.addVariable({ componentOf: load, browseName: "broken", nodeId: "s=Load.broken", dataType: DataType.Double });
  variables.broken.setValueFromSource({ dataType: DataType.Double, value: 9 }, StatusCodes.BadSensorFailure);
  await server.start();
  console.log(JSON.stringify({ certificate: server.certificateFile, endpoints: server.endpoints.length }));
  const lines = readline.createInterface({ input: process.stdin });
  for await (const line of lines) {
    const [name, value] = line.split(" ");
    variables[name].setValueFromSource({ dataType: DataType.Double, value: Number(value) });
  }
  await server.shutdown(0);
  process.exit(0);
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
