/** Makes one batch of the calls of one turn of the event loop. */
export class Coalescer {
  #waiting = [];

  constructor(send) {
    this.send = send;
  }

  call(item) {
    return new Promise((resolve, reject) => {
      if (this.#waiting.push({ item, resolve, reject }) === 1) setImmediate(() => this.#depart());
    });
  }

  #depart() {
    const calls = this.#waiting.splice(0);
    while (calls.length) this.#travel(calls.splice(0, 1000));
  }

  async #travel(batch) {
    try {
      const results = await this.send(batch.map(({ item }) => item));
      batch.forEach(({ resolve, reject }, at) => {
        const { status } = results[at];
        if (status?.code) reject(Object.assign(new Error(status.message), status));
        else resolve(results[at]);
      });
    } catch (error) {
      batch.forEach(({ reject }) => reject(error));
    }
  }
}
