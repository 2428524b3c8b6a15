// SPDX-License-Identifier: Apache-2.0
// A Modbus/TCP server by modbus-serial on a free port of loopback, which it prints. Registers hold their own address
// until they are written; addresses from 60000 on are refused.
"use strict";

const { ServerTCP } = require("modbus-serial");

const written = new Map();

const read = (address) => {
  if (address >= 60000) throw { modbusErrorCode: 2 };
  return written.has(address) ? written.get(address) : address;
};

const server = new ServerTCP(
  {
    getHoldingRegister: read,
    getInputRegister: read,
    getCoil: (address) => address % 2 === 1,
    getDiscreteInput: (address) => address % 2 === 1,
    setRegister: (address, value) => { written.set(address, value); },
    setCoil: () => {},
  },
  { host: "127.0.0.1", port: "0", unitID: 255 }, // a string, for a number of 0 is taken for none
);
server.on("initialized", () => console.log(server._server.address().port));
