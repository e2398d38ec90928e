//! The borrowers and what Flinks says of them: every webhook's bytes are a pure function of the seed, its index and the
//! largest size allowed. Nothing is kept: each is made when it is sent and, for a retry, made again.
//!
//! Webhooks come in blocks of [`BLOCK`]. A block holds stories that belong to it alone: a borrower connects (KYC, then
//! the accounts), pays, uploads statements. Every eighth block is a night: [`BLOCK`] scheduled refreshes at once, of
//! borrowers who connected in earlier blocks. So any webhook can be made without making those before it.
//!
//! All of it is invented. Distributions are tables of quantiles with straight lines between them, and the random
//! numbers are SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): neither
//! changes with a library's version or the machine's mathematics, so the same seed gives the same bytes everywhere.
//! Dates in the bodies are fixed for the same reason.

use std::fmt::Write;
use std::time::Duration;

use super::misbehave::{Misbehaviour, Shares};
use super::taught::Taught;

/// Webhooks in a block.
pub const BLOCK: u64 = 16;
/// Every so many blocks comes a night.
const NIGHTLY: u64 = 8;
/// The largest body that Flinks was seen or reckoned to send.
pub const LARGEST: usize = 8_000_000;
/// A body of accounts cannot be made smaller and still be one.
pub const SMALLEST_LIMIT: usize = 2_000;

/// What a webhook tells of, in the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who the holders are.
    Kyc,
    /// The accounts, after a borrower has connected.
    AccountsDetail,
    /// The accounts, at night.
    NightlyRefresh,
    /// A payment session's end.
    PaySession,
    /// A guarantee was issued.
    PayGuarantee,
    /// An uploaded statement looks forged.
    UploadFraudAlert,
    /// A type that the bridge does not know.
    UnknownType,
    /// No JSON.
    BrokenJson,
}

impl Kind {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Kyc => "kyc",
            Kind::AccountsDetail => "accounts-detail",
            Kind::NightlyRefresh => "nightly-refresh",
            Kind::PaySession => "pay-session",
            Kind::PayGuarantee => "pay-guarantee",
            Kind::UploadFraudAlert => "upload-fraud-alert",
            Kind::UnknownType => "unknown-type",
            Kind::BrokenJson => "broken-json",
        }
    }

    /// The event type that the bridge should see in it.
    pub const fn event_type(self) -> &'static str {
        match self {
            Kind::Kyc => "kyc",
            Kind::AccountsDetail | Kind::NightlyRefresh => "accounts-detail",
            Kind::PaySession | Kind::PayGuarantee => "pay-event",
            Kind::UploadFraudAlert => "upload-fraud-alert",
            Kind::UnknownType | Kind::BrokenJson => "unknown",
        }
    }
}

/// All webhooks there could be.
#[derive(Debug, Clone)]
pub struct Population {
    seed: u64,
    max_size: usize,
    shares: Shares,
    taught: Option<Taught>,
}

/// A webhook before it is made: cheap to have for any index.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Which webhook.
    pub index: u64,
    /// What it tells of.
    pub kind: Kind,
    /// How its sender misbehaves, if it does.
    pub misbehaviour: Option<Misbehaviour>,
    /// How long after its turn it is ready to be sent, on Flinks' clock.
    pub delay: Duration,
    /// The webhook whose turn is its turn: its own, or the first of the night.
    pub turn: u64,
    /// About how large the body will be, for a budget.
    pub estimate: usize,
    /// Same for all webhooks of one borrower; picks the instance.
    pub borrower: u64,
    /// From 0 to 1, its own: picks the secret during a rotation.
    pub dice: f64,
    story: u64,
    part: Part,
}

/// A webhook as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The key that its record should have.
    pub key: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// What a story still has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Kyc,
    Accounts,
    /// The borrower comes back with another Tag.
    Reconnect,
    Refresh,
    Pay(&'static str, &'static str),
    Guarantee,
    Fraud,
}

impl Population {
    /// The population of a seed, with bodies of at most `max_size` bytes and this share of misbehaving senders.
    pub fn new(seed: u64, max_size: usize, shares: Shares) -> Population {
        Population { seed, max_size: max_size.clamp(SMALLEST_LIMIT, LARGEST), shares, taught: None }
    }

    /// The same with some bodies under names that were taught.
    pub fn with(self, taught: Taught) -> Population {
        Population { taught: Some(taught), ..self }
    }

    /// What the webhook of this index will be.
    pub fn plan(&self, index: u64) -> Plan {
        let block = index / BLOCK;
        let (story, part) = self.slot(block, index % BLOCK);
        let mut dice = self.rng(index, Stream::Dice);
        let misbehaviour = self.shares.pick(dice.unit());
        let kind = match (misbehaviour, part) {
            (Some(Misbehaviour::BrokenJson), _) => Kind::BrokenJson,
            (Some(Misbehaviour::UnknownType), _) => Kind::UnknownType,
            (_, Part::Kyc) => Kind::Kyc,
            (_, Part::Accounts | Part::Reconnect) => Kind::AccountsDetail,
            (_, Part::Refresh) => Kind::NightlyRefresh,
            (_, Part::Pay(..)) => Kind::PaySession,
            (_, Part::Guarantee) => Kind::PayGuarantee,
            (_, Part::Fraud) => Kind::UploadFraudAlert,
        };
        let (mut delay, mut estimate) = (Duration::ZERO, 4_000);
        match part {
            Part::Accounts | Part::Reconnect | Part::Refresh => {
                let accounts = self.accounts(index, story);
                estimate = accounts.estimate().min(self.max_size);
                if part != Part::Refresh {
                    // Reading the bank's pages takes a while for each account and for each page of transactions.
                    let millis = 4_000 + 3_000 * accounts.per_account.len() as u64 + 5 * accounts.transactions();
                    delay = Duration::from_millis(millis + dice.below(4_000));
                }
            }
            // The borrower signs the pre-authorized debit.
            Part::Pay("Completed", "EFT0301") if story != index => {
                delay = Duration::from_millis(20_000 + dice.below(100_000));
            }
            Part::Kyc | Part::Pay(..) | Part::Guarantee | Part::Fraud => {}
        }
        let turn = if is_night(block) { block * BLOCK } else { index };
        Plan { index, kind, misbehaviour, delay, turn, estimate, borrower: story, dice: dice.unit(), story, part }
    }

    /// The webhook of a plan of this population.
    pub fn make(&self, plan: &Plan) -> Webhook {
        let mut rng = self.rng(plan.index, Stream::Body);
        let login = self.rng(plan.story, Stream::Login).guid();
        let (body, key) = match (plan.kind, plan.part) {
            (Kind::UnknownType, _) => (self.unknown_type(plan, &login, &mut rng), login),
            (_, Part::Kyc) => (self.kyc(plan, &login), login),
            (_, Part::Accounts | Part::Reconnect | Part::Refresh) => {
                (self.accounts_body(plan, &login, &mut rng), login)
            }
            (_, Part::Pay(status, details)) => {
                let session = self.rng(plan.story, Stream::Session).guid();
                (self.pay(plan, &session, status, details, &mut rng), session)
            }
            (_, Part::Guarantee) => {
                let session = self.rng(plan.story, Stream::Session).guid();
                (guarantee(&session, plan.story, &mut rng), session)
            }
            (_, Part::Fraud) => (fraud_alert(&login, &mut rng), login),
        };
        if !matches!(plan.kind, Kind::BrokenJson | Kind::UnknownType)
            && let Some(taught) = &self.taught
        {
            let mut dice = self.rng(plan.index, Stream::Names);
            let dice = (dice.unit(), dice.unit());
            let (body, key) = taught.write(plan.kind.event_type(), dice, body, key, self.max_size);
            return Webhook { key: Some(key), body: body.into_bytes() };
        }
        let mut body = body.into_bytes();
        if plan.kind != Kind::BrokenJson {
            return Webhook { key: Some(key), body };
        }
        // As if the sender's serialiser had stopped in mid-air.
        body.pop();
        body.extend_from_slice(b",\"");
        Webhook { key: None, body }
    }

    /// The story and the part of it that stand in a block's slot.
    fn slot(&self, block: u64, slot: u64) -> (u64, Part) {
        let first = block * BLOCK;
        let mut rng = self.rng(block, Stream::Block);
        if is_night(block) {
            let mut rng = self.rng(first + slot, Stream::Block);
            return (self.earlier_borrower(block, &mut rng), Part::Refresh);
        }
        let mut at = 0;
        loop {
            let story = first + at;
            // A block begins with a borrower who connects, so that there always is one to come back to.
            let draw = if at == 0 { 0 } else { rng.below(100) };
            let room = BLOCK - at > 1;
            let parts: &[Part] = match draw {
                0..=49 if room => &[Part::Kyc, Part::Accounts],
                0..=64 => &[Part::Accounts],
                65..=68 => &[Part::Reconnect],
                69..=76 => &[Part::Pay("Completed", "EFT0301")],
                77..=82 if room => &[Part::Pay("Completed", "EFT0302"), Part::Pay("Completed", "EFT0301")],
                77..=83 => &[Part::Pay("Failed", "EFT0404")],
                84..=85 => &[Part::Pay("Failed", "EFT0401")],
                86..=89 => &[Part::Pay("Canceled", "EFT0501")],
                90..=93 => &[Part::Guarantee],
                _ => &[Part::Fraud],
            };
            let part = slot - at;
            if let Some(part) = parts.get(part as usize) {
                if *part != Part::Reconnect {
                    return (story, *part);
                }
                let mut rng = self.rng(story, Stream::Block);
                let borrower = if block == 0 { 0 } else { self.earlier_borrower(block, &mut rng) };
                return (borrower, Part::Reconnect);
            }
            at += parts.len() as u64;
        }
    }

    /// A borrower who connected at the beginning of an earlier block.
    fn earlier_borrower(&self, block: u64, rng: &mut Rng) -> u64 {
        let earlier = rng.below(block);
        // A night's own borrowers are from before it; the block before a night is none.
        let earlier = if is_night(earlier) { earlier - 1 } else { earlier };
        earlier * BLOCK
    }

    fn accounts(&self, index: u64, story: u64) -> Accounts {
        let mut rng = self.rng(story, Stream::Accounts);
        let most = ((self.max_size.saturating_sub(1_000)) / 900).clamp(1, 6);
        let count = match rng.below(100) {
            0..=34 => 1,
            35..=62 => 2,
            63..=80 => 3,
            81..=90 => 4,
            91..=96 => 5,
            _ => 6,
        };
        let days: u64 = if rng.below(100) < 70 { 90 } else { 365 };
        let per_account: Vec<u64> = (0..count.min(most))
            // A new account has few, but a bank connection without any is not sent.
            .map(|_| (quantile(TRANSACTIONS_PER_DAY, rng.unit()) * days as f64) as u64 + 24)
            .collect();
        // A few statements ride along: Base64 of PDFs of 40 to 400 kB.
        let mut own = self.rng(index, Stream::Statements);
        let statement = if own.below(100) < 2 { 40_000 + own.below(360_000) } else { 0 };
        Accounts { per_account, days, statement: statement as usize }
    }

    fn kyc(&self, plan: &Plan, login: &str) -> String {
        let borrower = self.borrower(plan.story);
        let mut rng = self.rng(plan.story, Stream::Holders);
        let most = ((self.max_size - 800) / 420).clamp(1, 7) as u64;
        let holders = (2 + rng.below(6)).min(most);
        let mut out = String::with_capacity(3_500);
        out.push_str("{\n  \"ResponseType\": \"KYC\",\n  \"HttpStatusCode\": 200,\n  \"Holders\": [");
        for n in 0..holders {
            let holder = if n == 0 { borrower.holder.clone() } else { Holder::draw(&mut rng) };
            let _ = write!(
                out,
                "{}\n    {{\n      \"Name\": \"{}\",\n      \"Address\": {{\n        \"CivicAddress\": \"{}\",\n        \
                 \"City\": \"{}\",\n        \"Province\": \"{}\",\n        \"PostalCode\": \"{}\",\n        \
                 \"POBox\": null,\n        \"Country\": \"CA\"\n      }},\n      \"Email\": \"{}\",\n      \
                 \"PhoneNumber\": \"{}\"\n    }}",
                if n == 0 { "" } else { "," },
                holder.name,
                holder.street,
                holder.city,
                holder.province,
                holder.postal_code,
                holder.email,
                holder.phone
            );
        }
        let request = self.rng(plan.story, Stream::Request).guid();
        let _ = write!(
            out,
            "\n  ],\n  \"Login\": {{\n    \"Username\": \"{}\",\n    \"IsScheduledRefresh\": false,\n    \
             \"LastRefresh\": \"{}\",\n    \"Type\": \"Personal\",\n    \"Id\": \"{login}\"\n  }},\n  \
             \"Institution\": \"{}\",\n  \"RequestId\": \"{request}\"",
            borrower.username,
            rng.refreshed(),
            borrower.institution
        );
        if let Some(tag) = &borrower.tag {
            let _ = write!(out, ",\n  \"Tag\": \"{tag}\"");
        }
        out.push_str("\n}");
        out
    }

    fn accounts_body(&self, plan: &Plan, login: &str, rng: &mut Rng) -> String {
        let borrower = self.borrower(plan.story);
        let accounts = self.accounts(plan.index, plan.story);
        let mut ids = self.rng(plan.story, Stream::AccountIds);
        let mut out = String::with_capacity(plan.estimate + 4_096);
        out.push_str(r#"{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"Accounts":["#);
        let mut numbers = Vec::with_capacity(accounts.per_account.len());
        for (n, &transactions) in accounts.per_account.iter().enumerate() {
            // What is still to come after this account's transactions must fit too.
            let room = self.max_size - 900 * (accounts.per_account.len() - n);
            let (category, kind, title) = ACCOUNTS[if n == 0 { 0 } else { ids.below(ACCOUNTS.len() as u64) as usize }];
            out.push_str(if n == 0 { r#"{"Transactions":["# } else { r#",{"Transactions":["# });
            let mut balance = ids.below(900_000) as i64;
            let opening = balance;
            for t in 0..transactions {
                if out.len() + 300 > room {
                    break;
                }
                let (description, credit) = DESCRIPTIONS[rng.below(DESCRIPTIONS.len() as u64) as usize];
                let amount = 100 + rng.below(if credit { 320_000 } else { 24_000 }) as i64;
                let (debit, credit) = if credit { (None, Some(amount)) } else { (Some(amount), None) };
                let _ = write!(
                    out,
                    r#"{}{{"Date":"{}","Code":null,"Description":"{description}","Debit":{},"Credit":{},"Balance":{},"Id":"{}"}}"#,
                    if t == 0 { "" } else { "," },
                    days_ago(t * accounts.days / transactions),
                    Money(debit),
                    Money(credit),
                    Money(Some(balance)),
                    rng.guid(),
                );
                // Newest first, as Flinks lists them: the balance before this one.
                balance += debit.unwrap_or(0) - credit.unwrap_or(0);
            }
            let number = 1_000_000 + ids.below(9_000_000);
            let holder = &borrower.holder;
            let limit = (category == "Credits").then_some(500_000);
            let _ = write!(
                out,
                r#"],"TransitNumber":"{:05}","InstitutionNumber":"777","OverdraftLimit":0,"Title":"{title}","AccountNumber":"{number}","LastFourDigits":null,"Balance":{{"Available":{},"Current":{},"Limit":{}}},"Category":"{category}","Type":"{kind}","Currency":"CAD","Holder":{{"Name":"{}","Address":{{"CivicAddress":"{}","City":"{}","Province":"{}","PostalCode":"{}","POBox":null,"Country":"CA"}},"Email":"{}","PhoneNumber":"{}"}},"AccountType":"Personal","Id":"{}"}}"#,
                ids.below(100_000),
                Money(Some(opening)),
                Money(Some(opening)),
                Money(limit),
                holder.name,
                holder.street,
                holder.city,
                holder.province,
                holder.postal_code,
                holder.email,
                holder.phone,
                ids.guid(),
            );
            numbers.push(number);
        }
        let refresh = plan.part == Part::Refresh;
        // The accounts of a connection come with the RequestId of its KYC; a night and a reconnection have their own.
        let request = match plan.part {
            Part::Accounts => self.rng(plan.story, Stream::Request).guid(),
            _ => rng.guid(),
        };
        let _ = write!(
            out,
            r#"],"InstitutionName":"{0}","Login":{{"Username":"{1}","IsScheduledRefresh":{refresh},"LastRefresh":"{2}","Type":"Personal","Id":"{login}"}},"InstitutionId":{3},"Institution":"{0}","RequestId":"{request}""#,
            borrower.institution,
            borrower.username,
            rng.refreshed(),
            14 + borrower.institution.len(),
        );
        let tag = match plan.part {
            Part::Reconnect => Some(format!("app-2026-{:06}-again", plan.index)),
            // Whether a refresh repeats the Tag is not documented: some do, some do not.
            Part::Refresh if rng.below(100) < 40 => None,
            _ => borrower.tag,
        };
        if let Some(tag) = tag {
            let _ = write!(out, r#","Tag":"{tag}""#);
        }
        let statement = accounts.statement.min(self.max_size.saturating_sub(out.len() + 400) / 4 * 3);
        if statement > 20_000 {
            let _ = write!(
                out,
                r#","StatementsByAccount":[{{"AccountNumber":"{}","Statements":[{{"UniqueId":"{}","FileType":"PDF","Base64Bytes":"JVBERi0xLjQK"#,
                numbers.first().copied().unwrap_or_default(),
                rng.guid(),
            );
            rng.base64(&mut out, statement / 3 * 4);
            out.push_str("\"}]}]");
        }
        out.push('}');
        out
    }

    fn pay(&self, plan: &Plan, session: &str, status: &str, details: &str, rng: &mut Rng) -> String {
        let known = status != "Canceled";
        let amount = 5_000 + self.rng(plan.story, Stream::Request).below(95_000) as i64;
        let reference = if known { format!("\"ORDER-{:06}\"", plan.story) } else { "null".to_owned() };
        format!(
            "{{\n  \"eventType\": \"SessionSetupStatusChanged\",\n  \"when\": \"{}Z\",\n  \"sessionId\": \"{session}\",\n  \
             \"referenceId\": {reference},\n  \"amount\": {},\n  \"status\": \"{status}\",\n  \
             \"statusDetails\": \"{details}\"\n}}",
            rng.moment(3),
            Money(known.then_some(amount)),
        )
    }

    fn unknown_type(&self, plan: &Plan, login: &str, rng: &mut Rng) -> String {
        format!(
            r#"{{"ResponseType":"SomethingNew","HttpStatusCode":200,"Login":{{"Username":"{}","IsScheduledRefresh":false,"LastRefresh":"{}","Type":"Personal","Id":"{login}"}},"RequestId":"{}","Payload":{{"x":1}}}}"#,
            self.borrower(plan.story).username,
            rng.refreshed(),
            rng.guid(),
        )
    }

    fn borrower(&self, story: u64) -> Borrower {
        let mut rng = self.rng(story, Stream::Borrower);
        let tag = match rng.below(100) {
            0..=9 => None,
            // A household or a second bank of the same user: its LoginIds share a Tag.
            10..=24 => Some(format!("household-{:05}", story / BLOCK)),
            _ => Some(format!("app-2026-{story:06}")),
        };
        Borrower {
            tag,
            username: format!("45190000{:08}", rng.below(100_000_000)),
            institution: INSTITUTIONS[rng.below(INSTITUTIONS.len() as u64) as usize],
            holder: Holder::draw(&mut rng),
        }
    }

    fn rng(&self, number: u64, stream: Stream) -> Rng {
        // Two rounds between the parts, so that neighbouring numbers have nothing in common.
        let mut rng = Rng(self.seed);
        let mut rng = Rng(rng.next() ^ number);
        Rng(rng.next() ^ stream as u64)
    }
}

fn is_night(block: u64) -> bool {
    block % NIGHTLY == NIGHTLY - 1
}

/// What a number is drawn for: each has a sequence of its own, so that one draw more here moves nothing there.
#[derive(Clone, Copy)]
enum Stream {
    Block = 1,
    Dice,
    Body,
    Login,
    Session,
    Accounts,
    AccountIds,
    Statements,
    Holders,
    Request,
    Borrower,
    Names,
}

struct Accounts {
    /// Transactions of each.
    per_account: Vec<u64>,
    days: u64,
    /// Bytes of a statement, or 0.
    statement: usize,
}

impl Accounts {
    fn transactions(&self) -> u64 {
        self.per_account.iter().sum()
    }

    fn estimate(&self) -> usize {
        1_000 + 700 * self.per_account.len() + 185 * self.transactions() as usize + self.statement / 3 * 4
    }
}

struct Borrower {
    tag: Option<String>,
    username: String,
    institution: &'static str,
    holder: Holder,
}

#[derive(Clone)]
struct Holder {
    name: String,
    street: String,
    city: &'static str,
    province: &'static str,
    postal_code: String,
    email: String,
    phone: String,
}

impl Holder {
    fn draw(rng: &mut Rng) -> Holder {
        let (first, plain_first) = FIRST_NAMES[rng.below(FIRST_NAMES.len() as u64) as usize];
        let (last, plain_last) = LAST_NAMES[rng.below(LAST_NAMES.len() as u64) as usize];
        let (city, province, area) = CITIES[rng.below(CITIES.len() as u64) as usize];
        Holder {
            name: format!("{first} {last}"),
            street: format!("{} {}", 1 + rng.below(9_900), STREETS[rng.below(STREETS.len() as u64) as usize]),
            city,
            province,
            postal_code: format!("{area}{}V {}K{}", rng.below(10), rng.below(10), rng.below(10)),
            email: format!("{plain_first}.{plain_last}{}@example.ca", rng.below(1_000)),
            // 555-01xx is kept for invented numbers.
            phone: format!("({})555-01{:02}", 200 + rng.below(700), rng.below(100)),
        }
    }
}

fn guarantee(session: &str, story: u64, rng: &mut Rng) -> String {
    format!(
        "{{\n  \"eventType\": \"GuaranteeEmitted\",\n  \"when\": \"{}Z\",\n  \"sessionId\": \"{session}\",\n  \
         \"referenceId\": \"ORDER-{story:06}\",\n  \"amount\": {},\n  \"guaranteeDetails\": {{\n    \
         \"guaranteeOffered\": true,\n    \"guaranteeAccepted\": null,\n    \"highestDebitAmountToGuarantee\": {},\n    \
         \"overallRiskLevel\": \"Unknown\"\n  }}\n}}",
        rng.moment(3),
        Money(Some(5_000 + rng.below(60_000) as i64)),
        Money(Some(65_000 + rng.below(35_000) as i64)),
    )
}

fn fraud_alert(login: &str, rng: &mut Rng) -> String {
    let mut out = format!(
        r#"{{"HttpStatusCode":200,"Login":{{"LoginId":"{login}","RequestId":"{}"}},"DocumentAnalysis":[{{"Status":"Completed","FullAnalysis":[{{"DocumentType":"BankStatement","FraudSignals":["#,
        rng.guid()
    );
    for n in 0..1 + rng.below(5) {
        let signal = SIGNALS[rng.below(SIGNALS.len() as u64) as usize];
        let _ = write!(
            out,
            r#"{}{{"Type":"{signal}","PageNumber":{},"Count":{},"UnderlyingData":[{{"Details":[{{"SpecificType":"Producer","Value":"ExamplePDF Editor {}","DataType":"string"}}]}}]}}"#,
            if n == 0 { "" } else { "," },
            1 + rng.below(9),
            1 + rng.below(4),
            1 + rng.below(12),
        );
    }
    out.push_str("]}]}]}");
    out
}

/// Cents as a JSON number the way .NET writes a double, or null.
struct Money(Option<i64>);

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(cents) = self.0 else { return f.write_str("null") };
        let (sign, cents) = (if cents < 0 { "-" } else { "" }, cents.abs());
        match (cents / 100, cents % 100) {
            (whole, tenths) if tenths % 10 == 0 => write!(f, "{sign}{whole}.{}", tenths / 10),
            (whole, hundredths) => write!(f, "{sign}{whole}.{hundredths:02}"),
        }
    }
}

/// The day so many days before 2026-11-20 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_ago(days: u64) -> impl std::fmt::Display {
    const LAST: i64 = 20_777;
    let z = LAST - days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Date { year, month, day }
}

struct Date {
    year: i64,
    month: i64,
    day: i64,
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `bound`. The bias of the multiplication is below one in 2^40 for the bounds used here.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// As Flinks writes one: it need not carry a version or a variant (RFC 4122).
    fn guid(&mut self) -> String {
        let (a, b) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xFFFF,
            a & 0xFFFF,
            b >> 48,
            b & 0xFFFF_FFFF_FFFF
        )
    }

    /// A moment of the fixed day, without a zone.
    fn moment(&mut self, digits: u32) -> String {
        let second = self.below(86_400);
        let fraction = self.below(10_u64.pow(digits));
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        format!("2026-11-20T{hour:02}:{minute:02}:{second:02}.{fraction:0width$}", width = digits as usize)
    }

    /// `LastRefresh` has six or seven digits after the point.
    fn refreshed(&mut self) -> String {
        let digits = if self.below(4) == 0 { 6 } else { 7 };
        self.moment(digits)
    }

    fn base64(&mut self, out: &mut String, length: usize) {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let end = out.len() + length / 4 * 4;
        while out.len() < end {
            let mut bits = self.next();
            for _ in 0..8.min(end - out.len()) {
                out.push(char::from(DIGITS[(bits & 63) as usize]));
                bits >>= 6;
            }
        }
    }
}

/// The value below which a share of `at` lies, by straight lines between the table's points.
fn quantile(table: &[(f64, f64)], at: f64) -> f64 {
    let above = table.partition_point(|(share, _)| *share <= at).clamp(1, table.len() - 1);
    let ((low, from), (high, to)) = (table[above - 1], table[above]);
    from + (to - from) * (at - low) / (high - low)
}

/// Log-normal with a median of 0.9 and a sigma of 1: most accounts see little, a business account 25 a day.
const TRANSACTIONS_PER_DAY: &[(f64, f64)] = &[
    (0.0, 0.05),
    (0.05, 0.174),
    (0.1, 0.25),
    (0.25, 0.459),
    (0.5, 0.9),
    (0.75, 1.767),
    (0.9, 3.242),
    (0.95, 4.662),
    (0.99, 9.216),
    (0.999, 19.79),
    (1.0, 25.0),
];

const ACCOUNTS: &[(&str, &str, &str)] = &[
    ("Operations", "Chequing", "Compte chèques CAD"),
    ("Operations", "Savings", "High Interest Savings"),
    ("Credits", "CreditCard", "Visa Infinite"),
    ("Credits", "LineOfCredit", "Marge de crédit"),
    ("Products", "TFSA", "TFSA Savings"),
    ("Products", "RRSP", "REER placement"),
];

/// Text, and whether money comes in.
const DESCRIPTIONS: &[(&str, bool)] = &[
    ("PAYROLL NORDIK LOGICIEL INC", true),
    ("VIREMENT INTERAC ÉMIS", false),
    ("EPICERIE METRO #221", false),
    ("NSF FEE", false),
    ("TIM HORTONS #3402", false),
    ("HYDRO-QUEBEC", false),
    ("GOUV. QUEBEC / SOLIDARITE", true),
    ("INTERAC E-TRANSFER RECEIVED", true),
    ("PRET RAPIDE REMBOURSEMENT", false),
    ("MORTGAGE PAYMENT", false),
    ("SHELL C12877", false),
    ("PHARMAPRIX 0041", false),
    ("MONTHLY PLAN FEE", false),
    ("LOYER / RENT", false),
];

const INSTITUTIONS: &[&str] = &["FlinksCapital", "BanqueDuNord", "PrairieTrust", "CaisseDuFleuve"];
const SIGNALS: &[&str] = &[
    "Editing software detected",
    "Unreconciled balances",
    "Misaligned text",
    "Dollar amount edited",
    "Date edited",
    "Unusual source",
];
const FIRST_NAMES: &[(&str, &str)] = &[
    ("Éloïse", "eloise"),
    ("Marc-André", "marc-andre"),
    ("Priya", "priya"),
    ("Noémie", "noemie"),
    ("William", "william"),
    ("Olúwaṣeun", "oluwaseun"),
    ("Françoise", "francoise"),
    ("Liam", "liam"),
    ("Mei", "mei"),
    ("Zoë", "zoe"),
];
const LAST_NAMES: &[(&str, &str)] = &[
    ("Tremblay", "tremblay"),
    ("Roy", "roy"),
    ("O'Neill", "oneill"),
    ("Gagné", "gagne"),
    ("Nguyễn", "nguyen"),
    ("Singh", "singh"),
    ("Côté", "cote"),
    ("MacDonald", "macdonald"),
    ("Bélanger", "belanger"),
    ("Wong", "wong"),
];
const STREETS: &[&str] = &[
    "Rue Sainte-Hélène App. 3",
    "King St W",
    "Chemin du Lac",
    "Jasper Ave",
    "Main Street, Unit 12",
    "Avenue des Érables",
];
const CITIES: &[(&str, &str, &str)] = &[
    ("Montréal", "QC", "H"),
    ("Québec", "QC", "G"),
    ("Toronto", "ON", "M"),
    ("Calgary", "AB", "T"),
    ("Vancouver", "BC", "V"),
    ("Moncton", "NB", "E"),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::signature::ContentHash;
    use crate::webhook::{self, EventTypes};

    fn good(seed: u64, max_size: usize) -> Population {
        Population::new(seed, max_size, Shares::default())
    }

    fn hash(population: &Population, count: u64) -> String {
        let mut hash = ContentHash::new();
        for index in 0..count {
            hash.update(&population.make(&population.plan(index)).body);
        }
        hash.finish().map(|byte| format!("{byte:02x}")).concat()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let first = hash(&good(7, 20_000), 200);
        assert_eq!(first, hash(&good(7, 20_000), 200));
        assert_ne!(first, hash(&good(8, 20_000), 200));
        assert_ne!(first, hash(&good(7, 30_000), 200));
        // Ledgers and bug reports name seeds: when this changes, the bodies of every seed have changed.
        assert_eq!(first, "11be2a47c148ac1cd718544a1702b3462f6be31276f54745529abbe78638c853");
    }

    /// Whatever is made must be what the bridge will see: type, key, and JSON unless broken on purpose.
    #[test]
    fn the_bridge_sees_what_is_expected_and_no_two_are_the_same() {
        let types = EventTypes::builtin();
        let shares = "broken-json=0.1,unknown-type=0.1".parse().unwrap();
        for population in [good(1, LARGEST / 40), good(2, SMALLEST_LIMIT), Population::new(3, 8_000, shares)] {
            let mut seen = BTreeSet::new();
            let mut kinds = BTreeSet::new();
            for index in 0..1_000 {
                let plan = population.plan(index);
                let made = population.make(&plan);
                assert_eq!(made, population.make(&plan));
                let webhook = webhook::Webhook::parse(&made.body, &types);
                assert_eq!(webhook.is_err(), plan.kind == Kind::BrokenJson, "{index}");
                let webhook = webhook.unwrap_or_else(|_| webhook::Webhook::not_json(&types));
                assert_eq!(&*types.types[webhook.event_type()].name, plan.kind.event_type(), "{index}");
                assert_eq!(webhook.key(), made.key.as_deref(), "{index}");
                assert!(made.body.len() <= population.max_size, "{index}: {}", made.body.len());
                assert!(seen.insert(ContentHash::of(&made.body)), "{index} was there before");
                kinds.insert(plan.kind);
            }
            assert!(kinds.len() >= 6, "{kinds:?}");
        }
    }

    #[test]
    fn sizes_and_kinds_are_as_in_the_field() {
        let population = good(42, LARGEST);
        let mut sizes: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
        let (mut off, mut statements): (f64, u64) = (0.0, 0);
        for index in 0..4_000 {
            let plan = population.plan(index);
            let size = if matches!(plan.kind, Kind::AccountsDetail | Kind::NightlyRefresh) && index % 8 != 0 {
                // Making them all takes long without optimisation; the estimate is held against the truth below.
                plan.estimate
            } else {
                let body = population.make(&plan).body;
                let tail = &body[body.len().saturating_sub(100)..];
                // Base64 up to the very end: nothing but a statement looks like that.
                statements += u64::from(tail.ends_with(b"\"}]}]}") && !tail[..90].contains(&b'"'));
                let size = body.len();
                if plan.estimate > 4_000 {
                    off = off.max((size as f64 / plan.estimate as f64 - 1.0).abs());
                }
                size
            };
            sizes.entry(plan.kind).or_default().push(size);
        }
        assert!(off < 0.25, "the estimate is off by {off}");
        assert!((1..20).contains(&statements), "{statements}");
        let bounds: &[(Kind, usize, usize, usize)] = &[
            // Kind, at least so many of 4,000, smallest, largest.
            (Kind::Kyc, 800, 950, 3_300),
            (Kind::AccountsDetail, 1_000, 5_000, LARGEST),
            (Kind::NightlyRefresh, 400, 5_000, LARGEST),
            (Kind::PaySession, 300, 200, 260),
            (Kind::PayGuarantee, 50, 300, 450),
            (Kind::UploadFraudAlert, 80, 300, 1_500),
        ];
        for (kind, least, smallest, largest) in bounds {
            let sizes = &sizes[kind];
            assert!(sizes.len() >= *least, "{kind:?}: {}", sizes.len());
            let (min, max) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(min >= smallest && max <= largest, "{kind:?}: {min} to {max}");
        }
        let mut details = sizes.remove(&Kind::AccountsDetail).unwrap();
        details.sort_unstable();
        let (median, most) = (details[details.len() / 2], details[details.len() - 1]);
        assert!((30_000..200_000).contains(&median), "{median}");
        assert!(most > 1_500_000, "{most}");
    }

    #[test]
    fn stories_hold_together() {
        let population = good(5, 4_000);
        let text = |index| String::from_utf8(population.make(&population.plan(index)).body).unwrap();
        let member = |text: &str, name: &str| {
            let (_, after) = text.split_once(&format!("\"{name}\":"))?;
            after.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned)
        };
        let (mut changed, mut untagged, mut shared, mut signed, mut variants) = (0, 0, 0, 0, 0);
        let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for index in 0..2_000 {
            let plan = population.plan(index);
            let body = text(index);
            match plan.part {
                Part::Kyc => {
                    let next = population.plan(index + 1);
                    assert_eq!((next.part, next.borrower), (Part::Accounts, plan.borrower));
                    assert!(next.delay >= Duration::from_secs(7) && plan.delay.is_zero());
                    for name in ["Id", "RequestId", "Tag"] {
                        let after = text(index + 1);
                        let (_, login) = after.split_once("\"Login\"").unwrap();
                        let (_, before) = body.split_once("\"Login\"").unwrap();
                        assert_eq!(member(before, name), member(login, name), "{name} of {index}");
                    }
                }
                Part::Refresh => {
                    assert!(body.contains(r#""IsScheduledRefresh":true"#));
                    assert_eq!((plan.turn % BLOCK, plan.turn / BLOCK % NIGHTLY), (0, NIGHTLY - 1));
                    assert_eq!(population.plan(plan.borrower).kind, Kind::Kyc);
                    assert!(plan.borrower < plan.turn);
                }
                Part::Reconnect => changed += usize::from(body.contains("-again")),
                Part::Pay(_, "EFT0302") => {
                    let next = population.plan(index + 1);
                    assert_eq!(next.part, Part::Pay("Completed", "EFT0301"));
                    assert_eq!(member(&body, "sessionId"), member(&text(index + 1), "sessionId"));
                    assert!(next.delay >= Duration::from_secs(20));
                    signed += 1;
                }
                _ => {}
            }
            if plan.kind == Kind::AccountsDetail && plan.part == Part::Accounts {
                let (_, login) = body.split_once("\"Login\"").unwrap();
                let id = member(login, "Id").unwrap();
                variants += usize::from(!matches!(&id[19..20], "8" | "9" | "a" | "b"));
                match member(login, "Tag") {
                    None => untagged += 1,
                    Some(tag) => drop(tags.entry(tag).or_default().insert(id)),
                }
            }
        }
        shared += tags.values().filter(|logins| logins.len() > 1).count();
        for (what, count) in
            [("changed", changed), ("none", untagged), ("shared", shared), ("signed", signed), ("variants", variants)]
        {
            assert!(count > 5, "{what}: {count}");
        }
    }

    #[test]
    fn numbers_and_dates_are_written_right() {
        let money =
            [(None, "null"), (Some(0), "0.0"), (Some(25_000), "250.0"), (Some(105), "1.05"), (Some(-4_810), "-48.1")];
        for (cents, text) in money {
            assert_eq!(Money(cents).to_string(), text);
        }
        for (days, date) in [(0, "2026-11-20"), (20, "2026-10-31"), (365, "2025-11-20"), (1_000, "2024-02-24")] {
            assert_eq!(days_ago(days).to_string(), date);
        }
        for (at, value) in [(0.0, 0.05), (0.5, 0.9), (0.25, 0.459)] {
            assert!((quantile(TRANSACTIONS_PER_DAY, at) - value).abs() < 1e-9);
        }
        assert!((1.0..1.5).contains(&quantile(TRANSACTIONS_PER_DAY, 0.6)));
    }
}
