// A small web server in JavaScript: connections, a health path, a greeting from its configuration file.
//
// Built into a component by componentize-qjs (docs/guests.md). QuickJS brings the language only, no Node: files and
// sockets are WASI's, as the imports below name them; a WIT result is the value or a thrown error. What is owned is
// disposed of by hand and in order (pollable, stream, socket), because the garbage collector knows no order.

import { getEnvironment } from "wasi:cli/environment@0.2.0";
import { getStdout } from "wasi:cli/stdout@0.2.0";
import { getDirectories } from "wasi:filesystem/preopens@0.2.0";
import { poll } from "wasi:io/poll@0.2.0";
import { instanceNetwork } from "wasi:sockets/instance-network@0.2.0";
import { createTcpSocket } from "wasi:sockets/tcp-create-socket@0.2.0";

const VERSION = "1.0";
const CONFIG = "/etc/greeter.json";
const MAX_CONFIG_BYTES = 65536;
const READ_BYTES = 16384;
const MAX_HEAD_BYTES = 16384;
const BACKLOG = 1024;

// --- text and files --------------------------------------------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(unescape(encodeURIComponent(text)), (c) => c.charCodeAt(0));
const latin1 = (bytes) => String.fromCharCode.apply(null, bytes);
const textOf = (bytes) => decodeURIComponent(escape(latin1(bytes)));

function print(line) {
    const output = getStdout();
    output.blockingWriteAndFlush(bytesOf(line + "\n"));
    output[Symbol.dispose]();
}

function readFile(path) {
    const [name] = path.split("/").slice(-1);
    const directory = path.slice(0, -name.length - 1);
    const found = getDirectories().find(([, guestPath]) => guestPath === directory);
    if (found === undefined) throw new Error(`no directory ${directory} is given`);
    const file = found[0].openAt({}, name, {}, { read: true });
    const [bytes] = file.read(MAX_CONFIG_BYTES, 0);
    file[Symbol.dispose]();
    return textOf(bytes);
}

// --- what is answered ------------------------------------------------------------------------------------------------

function response(status, body) {
    const content = bytesOf(body);
    const head = `HTTP/1.1 ${status}\r\nserver: greeter/${VERSION}\r\ncontent-length: ${content.length}\r\n\r\n`;
    return Uint8Array.from([...bytesOf(head), ...content]);
}

function answers(greeting) {
    const byPath = {
        "/": response("200 OK", `${greeting} from js ${VERSION}\n`),
        "/health": response("200 OK", "well\n"),
    };
    const unknown = response("404 Not Found", "nothing here\n");
    return (path) => byPath[path] ?? unknown;
}

// --- connections -----------------------------------------------------------------------------------------------------

class Connection {
    constructor([socket, input, output]) {
        Object.assign(this, { socket, input, output });
        this.readable = input.subscribe();
        this.writable = output.subscribe();
        this.head = "";
        this.waiting = []; // responses that did not go out yet
    }

    // What the loop waits for: room for what has to go out, otherwise a request.
    get pollable() {
        return this.waiting.length ? this.writable : this.readable;
    }

    // One step; false once the client has gone.
    step(answer) {
        try {
            if (!this.waiting.length) this.read(answer);
            this.write();
            return true;
        } catch {
            return false;
        }
    }

    read(answer) {
        this.head += latin1(this.input.read(READ_BYTES));
        const heads = this.head.split("\r\n\r\n");
        this.head = heads.pop();
        if (this.head.length > MAX_HEAD_BYTES) throw new Error("the head of a request is too long");
        this.waiting.push(...heads.map((head) => answer(head.split(" ", 2)[1])));
    }

    write() {
        while (this.waiting.length && this.output.checkWrite() >= this.waiting[0].length) {
            this.output.write(this.waiting.shift());
        }
    }

    close() {
        for (const owned of [this.readable, this.writable, this.input, this.output, this.socket]) owned[Symbol.dispose]();
    }
}

function listen(host, port) {
    const socket = createTcpSocket("ipv4");
    const address = { tag: "ipv4", val: { port, address: host.split(".").map(Number) } };
    socket.startBind(instanceNetwork(), address);
    socket.finishBind();
    socket.setListenBacklogSize(BACKLOG);
    socket.startListen();
    socket.finishListen();
    return socket;
}

function acceptAll(listener) {
    const accepted = [];
    for (;;) {
        try {
            accepted.push(new Connection(listener.accept()));
        } catch {
            return accepted; // nobody else waits
        }
    }
}

function serve(listener, answer) {
    const incoming = listener.subscribe();
    let connections = [];
    for (;;) {
        const ready = poll([incoming, ...connections.map((connection) => connection.pollable)]);
        const gone = new Set();
        for (const index of ready) {
            const connection = connections[index - 1];
            if (connection && !connection.step(answer)) gone.add(connection);
        }
        gone.forEach((connection) => connection.close());
        if (gone.size) connections = connections.filter((connection) => !gone.has(connection));
        if (ready.includes(0)) connections.push(...acceptAll(listener));
    }
}

export const run = {
    run() {
        const { greeting } = JSON.parse(readFile(CONFIG));
        const [host, port] = Object.fromEntries(getEnvironment()).LOWCLOUD_LISTEN_HTTP.split(":");
        const listener = listen(host, Number(port));
        print(`greeter ${VERSION} listens on ${host}:${port}`);
        serve(listener, answers(greeting));
    },
};
