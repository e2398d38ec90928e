//! The floor: what a webhook to Kafka costs at the least in this language with these libraries. hyper takes the request,
//! serde_json reads the key out of the body into borrowed strings, rdkafka's `FutureProducer` publishes it with
//! `acks=all`, and the answer waits for the ack. Nothing else: no signature, no hash, no limits, no deadline on a
//! reader, no metrics, no headers. It is a reference to measure against and no part of the product.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use serde::Deserialize;

/// As much of a body as the key needs, and what the bridge reads besides.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(dead_code, reason = "what is read and not used costs all the same")]
pub struct Known<'a> {
    #[serde(borrow)]
    pub response_type: Option<Cow<'a, str>>,
    pub http_status_code: Option<u32>,
    #[serde(borrow)]
    pub login: Option<Login<'a>>,
    #[serde(borrow)]
    pub request_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub tag: Option<Cow<'a, str>>,
}

/// Who has logged in.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Login<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

/// Serves until it is killed. `properties` are librdkafka's, `name=value` each, on top of those here.
pub fn run(listen: SocketAddr, servers: &str, topic: &'static str, properties: &[String]) {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", servers)
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("message.max.bytes", "41943040")
        // Its largest: what is under way is not bounded by anything.
        .set("queue.buffering.max.kbytes", "2097151")
        .set("queue.buffering.max.messages", "1000000");
    for (name, value) in properties.iter().filter_map(|property| property.split_once('=')) {
        client.set(name, value);
    }
    let producer: FutureProducer = client.create().expect("librdkafka takes these properties");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(listen).await.expect("a free port");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let producer = producer.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(request, &producer, topic));
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(
    request: Request<Incoming>,
    producer: &FutureProducer,
    topic: &str,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let status = publish(request, producer, topic).await;
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    Ok(response)
}

async fn publish(request: Request<Incoming>, producer: &FutureProducer, topic: &str) -> StatusCode {
    let Ok(body) = request.into_body().collect().await else { return StatusCode::BAD_REQUEST };
    let body = body.to_bytes();
    let Ok(known) = serde_json::from_slice::<Known<'_>>(&body) else { return StatusCode::BAD_REQUEST };
    let mut record = FutureRecord::<str, [u8]>::to(topic).payload(&body);
    if let Some(login) = &known.login {
        record = record.key(&login.id);
    }
    match producer.send(record, Timeout::After(Duration::from_secs(30))).await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
