// A TCP proxy before a gateway that can be killed and started again on its port.

import { connect, createServer } from "node:net";

export class Proxy {
  #server;
  #port = 0;
  #sockets = new Set();

  constructor(target) {
    this.target = target;
  }

  get url() {
    return `http://127.0.0.1:${this.#port}`;
  }

  async start() {
    this.#server = createServer((incoming) => {
      const outgoing = connect(Number(this.target.port), this.target.hostname);
      for (const socket of [incoming, outgoing]) {
        this.#sockets.add(socket);
        socket.on("error", () => {});
        socket.on("close", () => {
          this.#sockets.delete(socket);
          incoming.destroy();
          outgoing.destroy();
        });
      }
      incoming.pipe(outgoing).pipe(incoming);
    });
    await new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.#port, "127.0.0.1", resolve);
    });
    this.#port = this.#server.address().port;
  }

  /** Closes the port and breaks every connection, without a goodbye. */
  async stop() {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await closed;
  }
}
