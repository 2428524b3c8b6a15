// SPDX-License-Identifier: Apache-2.0
// A Modbus/TCP server by jsmodbus on a free port of loopback, which it prints. Holding registers hold their own address
// until they are written. Reads are answered late, and of several in flight the last asked is answered first.
"use strict";

const net = require("net");
const modbus = require("jsmodbus");

const { ModbusTCPResponse: Response, responses } = modbus;

const registers = Buffer.alloc(2 * 65536);
for (let address = 0; address < 65536; address += 1) registers.writeUInt16BE(address, 2 * address);

const sockets = net.createServer();
const reading = new modbus.server.TCP(sockets, { holding: undefined, input: registers });

reading.on("readHoldingRegisters", (request, send) => {
  const body = responses.ReadHoldingRegistersResponseBody.fromRequest(request.body, registers);
  const delay = 10 * (6 - (request.id % 6));
  setTimeout(() => send(Response.fromRequest(request, body).createPayload()), delay);
});
reading.on("writeSingleRegister", (request, send) => {
  registers.writeUInt16BE(request.body.value, 2 * request.body.address);
  const body = responses.WriteSingleRegisterResponseBody.fromRequest(request.body);
  send(Response.fromRequest(request, body).createPayload());
});
reading.on("writeMultipleRegisters", (request, send) => {
  request.body.valuesAsBuffer.copy(registers, 2 * request.body.address);
  const body = responses.WriteMultipleRegistersResponseBody.fromRequest(request.body);
  send(Response.fromRequest(request, body).createPayload());
});

sockets.listen(0, "127.0.0.1", () => console.log(sockets.address().port));
