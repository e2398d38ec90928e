// Node's own HTTP server and kafkajs: what a team writes in an afternoon. The key is read by JSON.parse, and the answer
// waits for the ack. A peer to measure against and no part of the product.
import http from "node:http";
import { Kafka, Partitioners, logLevel } from "kafkajs";

const [port, brokers, topic] = process.argv.slice(2);
const kafka = new Kafka({ brokers: brokers.split(","), logLevel: logLevel.ERROR });
const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
await producer.connect();

const server = http.createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const value = Buffer.concat(chunks);
  try {
    const key = JSON.parse(value)?.Login?.Id;
    await producer.send({ topic, acks: -1, messages: [{ key, value }] });
    response.writeHead(200).end();
  } catch (error) {
    console.error(error.message);
    response.writeHead(503).end();
  }
});
server.keepAliveTimeout = 60_000;
server.listen(Number(port), "127.0.0.1");
