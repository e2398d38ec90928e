//! Role `dev`: the ingress and both consumers on an embedded broker and a stand-in Flinks API, with a certificate it
//! makes itself, for whoever wants to see a webhook become a record, and that record attributes and a login link. It
//! prints how to post one and each record as it arrives on its topic.
//!
//! Nothing is kept: the embedded broker holds about 5 MiB a partition in memory. The ingress itself is the very one
//! that runs in production; only what stands around it is made up here.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::certificates::{self, SelfMade};
use crate::config::{Config, Faults, Loaded, Needs, Url, all_topics};
use crate::error::chain;
use crate::kafka::consume::reader::{self, ReadRecord};
use crate::metrics::log::LostLines;
use crate::record::disturbs;
use crate::serve::{self, InProcess, ServeError};
use crate::signature::{ContentHash, Scheme, Secret, sign};
use crate::tls::Identity;
use crate::workshop::embedded::Embedded;
use crate::workshop::stub::{Stub, StubOptions};

/// Options of role `dev`.
#[derive(Debug, Clone, Args)]
pub struct Dev {
    /// Address of the HTTPS endpoint.
    #[arg(long, default_value = "127.0.0.1:8443")]
    pub https: SocketAddr,
    /// Address of the same endpoint over plain HTTP.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, default_value = "127.0.0.1:9464")]
    pub admin: SocketAddr,
    /// Log filter; records are printed whatever it says.
    #[arg(long, default_value = "warn")]
    pub log: String,
}

/// Path that the instance of role `dev` listens on.
const PATH: &str = "/flinks/dev";
/// The secret is no secret: it is printed, so that a newcomer can sign.
const SECRET: &str = "not-a-secret-only-for-dev";
/// Keys of the stand-in Flinks API, no secrets either.
const AUTHORIZE_KEY: &str = "dev-authorize-key";
const API_KEY: &str = "dev-api-key";
/// Characters of a body that are printed.
const MOST_SHOWN: usize = 1000;
/// What a newcomer can post without a file.
const SAMPLE: &str = r#"{"ResponseType":"KYC","HttpStatusCode":200,"Login":{"Id":"7c1d0f52-3a6b-4c1e-641c-08d9b2f4e6a1"},"Tag":"app-2026-000417"}"#;
const SAMPLE_PAY: &str = r#"{"eventType":"SessionSetupStatusChanged","sessionId":"aadd08f2-83ce-456d-84ed-c68cfed4ee7b","status":"Completed","statusDetails":"EFT0301"}"#;

/// The settings of role `dev`: as if they had been read from a file.
///
/// # Errors
/// The faults of the options, as those of any settings.
pub fn settings(options: &Dev) -> Result<Loaded, Faults> {
    let Dev { https, http, admin, log } = options;
    let text = format!(
        r#"
        [log]
        format = "human"
        level = "{log}"
        [kafka]
        bootstrap_servers = "127.0.0.1:1"   # the embedded broker's, once it is up
        [ingress]
        listen = "{https}"
        plain_listen = "{http}"
        [admin]
        listen = "{admin}"
        [shutdown]
        drain_lag = "0s"                    # no balancer stands before this
        [flinks]
        poll_interval = "1s"
        [[enrich.endpoint]]
        name = "credit-risk"
        get = "GetCreditRiskAttributes"
        [[instance]]
        name = "dev"
        path = "{PATH}"
        [instance.api]
        base_url = "http://127.0.0.1:1"     # the stand-in's, once it is up
        authorize_key = "{AUTHORIZE_KEY}"
        api_key = "{API_KEY}"
        "#
    );
    let secrets = Scheme::ALL
        .map(|scheme| format!("[[instance.secret]]\nscheme = \"{scheme}\"\nlabel = \"dev\"\nvalue = \"{SECRET}\"\n"));
    let mut loaded = Config::parse(&format!("{text}{}", secrets.concat()), Path::new("dev"), &[], Needs::BOTH)?;
    // They speak of the made-up secrets.
    loaded.warnings.clear();
    Ok(loaded)
}

/// Runs role `dev` until `shutdown`, with the count of lines that the log has lost: the ingress that runs in production, and what it stands among.
///
/// # Errors
/// Why it ended otherwise.
pub async fn run(loaded: &Loaded, lost: LostLines, shutdown: CancellationToken) -> Result<(), ServeError> {
    let mut config = loaded.config.clone();
    // Addresses of the embedded broker and the stand-in API are known only now.
    let company = Company::gather(&mut config).await.map_err(|error| ServeError::Failed(chain(&*error)))?;
    serve::started(loaded);
    let in_process = company.in_process(shutdown.clone());
    let ended = serve::ingress_in(config, Some(in_process), lost, shutdown).await;
    // They were needed until now.
    drop(company);
    ended
}

/// What stands around the ingress in role `dev`.
struct Company {
    identity: Arc<Identity>,
    ca_file: PathBuf,
    /// Both held for as long as they are to run.
    _broker: Embedded,
    _stub: Stub,
}

impl Company {
    /// Starts the embedded broker with all topics and the stand-in Flinks API, points the settings to them, and makes a
    /// certificate.
    ///
    /// # Errors
    /// When one of the two cannot start or the certificate's authority cannot be written for curl to read.
    async fn gather(config: &mut Config) -> Result<Company, Box<dyn std::error::Error + Send + Sync>> {
        let broker = Embedded::start(&all_topics(config))?;
        config.kafka.bootstrap_servers = broker.bootstrap_servers().to_owned();
        let options = StubOptions {
            authorize_key: AUTHORIZE_KEY.to_owned(),
            api_key: API_KEY.to_owned(),
            ..StubOptions::default()
        };
        let stub = Stub::start(options).await?;
        for api in config.instances.iter_mut().filter_map(|instance| instance.api.as_mut()) {
            api.base_url = Url::new(stub.base_url());
        }
        let SelfMade { ca_pem, certificate_pem, private_key_pem } = certificates::self_made(certificates::LOCAL_NAMES)?;
        let identity = Identity::from_pem(&certificate_pem, &private_key_pem)?;
        let ca_file = std::env::temp_dir().join(format!("flinks-bridge-dev-{}.pem", std::process::id()));
        std::fs::write(&ca_file, ca_pem).map_err(|error| format!("cannot write {}: {error}", ca_file.display()))?;
        Ok(Company { identity, ca_file, _broker: broker, _stub: stub })
    }

    /// The ingress' share of it: the certificate, and an introduction for the newcomer, after which each record that
    /// arrives is printed, on a thread of its own, until the shutdown.
    fn in_process(&self, shutdown: CancellationToken) -> InProcess {
        let ca_file = self.ca_file.clone();
        let on_listening = move |addresses: &[SocketAddr], admin: SocketAddr, config: &Config| {
            print!("{}", introduction(&ca_file, addresses, admin, config));
            let kafka = config.kafka.clone();
            let topics = all_topics(config);
            let own = config.own_topics.clone();
            let follow = move || {
                let print = |record: Option<ReadRecord<'_>>| {
                    if let Some(record) = record {
                        // What the consumers made, of the stand-in's invented data, is what one wants to see.
                        let made = record.topic == own.attributes || record.topic == own.login_links;
                        println!("{}{}", summary(&record), if made { body(&record) } else { String::new() });
                    }
                    if shutdown.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                if let Err(error) = reader::follow(&kafka, &topics, print) {
                    tracing::error!(%error, "the topics cannot be read, so records are not printed");
                }
            };
            std::thread::spawn(follow);
        };
        InProcess { identity: self.identity.clone(), on_listening: Box::new(on_listening) }
    }
}

/// What runs, and how to use it.
fn introduction(ca_file: &Path, addresses: &[SocketAddr], admin: SocketAddr, config: &Config) -> String {
    let [https, http] = [addresses[0], addresses[1]];
    let (ca, broker) = (ca_file.display(), &config.kafka.bootstrap_servers);
    let topics = all_topics(config).join("\n             ");
    let secret = Secret::new(SECRET);
    let signed = |scheme: Scheme, body: &str| {
        format!(
            "-H '{}: {}' --data-binary '{body}'",
            scheme.default_header(),
            sign(scheme.default_form(), &secret, body.as_bytes())
        )
    };
    let kyc = signed(Scheme::FlinksAuthenticityKey, SAMPLE);
    let pay = signed(Scheme::XWebhookSignature, SAMPLE_PAY);
    let port = https.port();
    let header = Scheme::FlinksAuthenticityKey.default_header();
    format!(
        r#"
flinks-bridge dev: webhooks in, records out. NOTHING IS KEPT: the embedded broker holds about 5 MiB a partition in
memory, drops the oldest records beyond that (a larger record drops all before it), and forgets everything at the end.

  webhooks   https://localhost:{port}{PATH}   (authority: {ca})
             http://{http}{PATH}
  kafka      {broker}   (PLAINTEXT; try: kcat -b {broker} -t flinks.kyc -C)
  topics     {topics}
  metrics    http://{admin}/metrics   /readyz   /livez

Post a webhook; its record is printed below as it arrives on its topic, and what the consumers make of it: the login
link of a LoginId and its Tag, and, about a second after an accounts detail, attributes from a stand-in Flinks API:

  curl -i --cacert {ca} https://localhost:{port}{PATH} {kyc}

  curl -i http://{http}{PATH} {pay}

Post a file of your own:

  FILE=tests/payloads/accounts_detail.json
  curl -i --cacert {ca} https://localhost:{port}{PATH} \
    -H "{header}: $(openssl dgst -sha256 -hmac '{SECRET}' -binary "$FILE" | base64)" \
    -H 'Content-Type: application/json' --data-binary @"$FILE"

Ctrl-C ends it.

"#
    )
}

impl Drop for Company {
    fn drop(&mut self) {
        // It is in the directory for temporary files: a left-over does no harm.
        let _ = std::fs::remove_file(&self.ca_file);
    }
}

/// The body of a record in one line.
fn body(record: &ReadRecord<'_>) -> String {
    let text = String::from_utf8_lossy(record.payload);
    let shown: String = text.chars().filter(|c| !disturbs(*c)).take(MOST_SHOWN).collect();
    format!("\n    {shown}")
}

/// A record in one line, and its headers in more; of the body only how long it is and what it hashes to.
fn summary(record: &ReadRecord<'_>) -> String {
    let key = record.key.map_or("(none)".into(), String::from_utf8_lossy);
    let headers =
        record.headers.iter().map(|(name, value)| format!("\n    {name}: {}", String::from_utf8_lossy(value)));
    let mut hash = ContentHash::new();
    hash.update(record.payload);
    let hash = hash.finish().map(|byte| format!("{byte:02x}")).concat();
    format!(
        "{} [{}] offset {}  key {key}  {} bytes  sha256 {hash}{}",
        record.topic,
        record.partition,
        record.offset,
        record.payload.len(),
        headers.collect::<String>()
    )
}
