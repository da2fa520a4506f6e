// sqs-consumer on Node: CONSUMERS of them in one process, which share a client, each with batches of ten.
import { appendFileSync } from "node:fs";
import { hrtime } from "node:process";
import { SQSClient } from "@aws-sdk/client-sqs";
import { Consumer } from "sqs-consumer";

const CONSUMERS = 10;
const { BENCH_ENDPOINT, BENCH_QUEUE, BENCH_STAMPS } = process.env;
const sqs = new SQSClient({
  endpoint: BENCH_ENDPOINT,
  region: "us-east-1",
  credentials: { accessKeyId: "bench", secretAccessKey: "bench" },
});

async function nothing(messages) {
  if (BENCH_STAMPS) {
    for (const _ of messages) appendFileSync(BENCH_STAMPS, `${(Number(hrtime.bigint()) / 1e9).toFixed(6)}\n`);
  }
  return messages;
}

for (let number = 0; number < CONSUMERS; number++) {
  const consumer = Consumer.create({
    queueUrl: `${BENCH_ENDPOINT}/000000000000/${BENCH_QUEUE}`,
    sqs,
    batchSize: 10,
    waitTimeSeconds: 20,
    visibilityTimeout: 30,
    handleMessageBatch: nothing,
  });
  consumer.on("error", (error) => console.error(error.message));
  consumer.on("processing_error", (error) => console.error(error.message));
  consumer.start();
}
