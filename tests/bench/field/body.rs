//! The bodies that are sent: GetAccountsDetail as `tests/payloads/accounts_detail.json` has it, with other transactions
//! in each and exactly as many bytes as asked for; and some that hardly compress. The same on every run.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flinks_bridge::signature::{Scheme, Secret, sign};

use super::SECRET;

/// The bodies of one size, each with a LoginId of its own, so that records go to several partitions.
pub struct Bodies {
    /// How it is written in tables.
    pub name: &'static str,
    /// The bodies.
    pub all: Vec<Body>,
}

/// One body with its signature.
pub struct Body {
    pub text: Vec<u8>,
    /// Base64 of its HMAC-SHA256 with [`SECRET`].
    pub signature: String,
    /// SHA-256 of it.
    pub digest: [u8; 32],
}

/// The sizes of the comparison, in bytes.
pub const SIZES: [(&str, usize); 5] =
    [("0.5 kB", 500), ("2 kB", 2_000), ("35 kB", 35_000), ("450 kB", 450_000), ("5 MB", 5_000_000)];

/// How many bodies a size has. A load generator sends one body alone, so this is also how many of them run.
const VARIETY: u64 = 4;
/// An account's transactions are no more than these; what is left goes to the next account.
const TRANSACTIONS: usize = 400;

impl Bodies {
    pub fn of(name: &'static str, bytes: usize) -> Bodies {
        Bodies::many(name, VARIETY, |seed| accounts_detail(seed, bytes))
    }

    /// As [`Bodies::of`], so many of them.
    pub fn of_so_many(name: &'static str, bytes: usize, count: u64) -> Bodies {
        Bodies::many(name, count, |seed| accounts_detail(seed, bytes))
    }

    /// Almost all of each is a statement: see [`with_statement`].
    pub fn with_statement(name: &'static str, bytes: usize, count: u64) -> Bodies {
        Bodies::many(name, count, |seed| with_statement(seed, bytes))
    }

    fn many(name: &'static str, count: u64, text: impl Fn(u64) -> Vec<u8>) -> Bodies {
        Bodies { name, all: (0..count).map(|seed| Body::new(text(seed))).collect() }
    }
}

impl Body {
    pub fn new(text: Vec<u8>) -> Body {
        let signature = sign(Scheme::FlinksAuthenticityKey.default_form(), &Secret::new(SECRET), &text);
        let digest = flinks_bridge::signature::ContentHash::of(&text);
        Body { text, signature, digest }
    }
}

const DESCRIPTIONS: [&str; 12] = [
    "PAYROLL NORDIK LOGICIEL INC",
    "VIREMENT INTERAC ÉMIS",
    "NSF FEE",
    "EPICERIE METRO #221",
    "PREAUTHORIZED DEBIT HYDRO-QUEBEC",
    "ACHAT POINT DE VENTE \\\"CHEZ MARCEL\\\"",
    "LOYER / RENT",
    "INTERAC E-TRANSFER FROM J. BOUCHARD",
    "ATM WITHDRAWAL 4820 STE-HELENE",
    "FRAIS MENSUELS DU FORFAIT",
    "MOBILE DEPOSIT",
    "LOAN PAYMENT EASY CREDIT 0034",
];

fn accounts_detail(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let login = guid(&mut dice);
    let end = format!(
        r#"],"InstitutionName":"FlinksCapital","Login":{{"Username":"4519000011112222","IsScheduledRefresh":false,"LastRefresh":"2026-11-20T14:07:31.4820917","Type":"Personal","Id":"{login}"}},"InstitutionId":14,"Institution":"FlinksCapital","RequestId":"{}"}}"#,
        guid(&mut dice)
    );
    let mut text = String::with_capacity(bytes);
    text.push_str(r#"{"ResponseType":"GetAccountsDetail","HttpStatusCode":200,"Accounts":["#);
    let mut written = 0;
    let mut account = account_end(&mut dice, bytes);
    let mut open = false;
    loop {
        let transaction = transaction(&mut dice);
        // After this one: either another, or the padded end.
        let room = bytes.saturating_sub(text.len() + account.len() + end.len());
        if room < transaction.len() + 200 {
            break;
        }
        if !open {
            text.push_str(r#"{"Transactions":["#);
            open = true;
        } else {
            text.push(',');
        }
        text.push_str(&transaction);
        written += 1;
        if written % TRANSACTIONS == 0 && room > 5_000 {
            text.push_str(&account);
            text.push(',');
            account = account_end(&mut dice, bytes);
            open = false;
        }
    }
    if !open {
        text.push_str(r#"{"Transactions":["#);
    }
    text.push_str(&account);
    // What is missing is the sender's own reference, as `Tag` is; only ever some hundred bytes.
    let mut end = end;
    let missing = bytes - text.len() - end.len();
    let frame = r#","Tag":"""#.len();
    if missing >= frame {
        end.truncate(end.len() - 1);
        let _ = write!(end, r#","Tag":"{}"}}"#, letters(&mut dice, missing - frame));
    } else {
        end.push_str(&" ".repeat(missing));
    }
    text.push_str(&end);
    assert_eq!(text.len(), bytes, "a body of another size than asked for");
    text.into_bytes()
}

/// Some accounts, and a statement as Flinks has them, whose file is packed already: Base64 of random bytes. Nothing
/// repeats in it; a coder of single bytes still saves a quarter, since 4 of Base64 stand for 3.
fn with_statement(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = fastrand::Rng::with_seed(seed);
    // All but 2.5 kB, which the accounts and the statement's frame share.
    let mut file = vec![0; (bytes - 2_500) / 4 * 3];
    dice.fill(&mut file);
    let statement = format!(
        r#","Statements":[{{"UniqueId":"{}","FileType":"PDF","Base64Bytes":"{}"}}]"#,
        guid(&mut dice),
        BASE64.encode(file)
    );
    let mut text = accounts_detail(seed, bytes - statement.len());
    let end = text.iter().rposition(|byte| *byte == b'}').expect("an object ends so");
    text.splice(end..end, statement.into_bytes());
    assert_eq!(text.len(), bytes, "a body of another size than asked for");
    text
}

fn transaction(dice: &mut fastrand::Rng) -> String {
    let (day, month) = (dice.u8(1..29), dice.u8(1..13));
    let amount = f64::from(dice.u32(1..500_000)) / 100.0;
    let balance = f64::from(dice.u32(1..9_000_000)) / 100.0;
    let description = DESCRIPTIONS[dice.usize(..DESCRIPTIONS.len())];
    let (debit, credit) = if dice.u8(..4) == 0 {
        ("null".to_owned(), amount.to_string())
    } else {
        (amount.to_string(), "null".to_owned())
    };
    format!(
        r#"{{"Date":"2026-{month:02}-{day:02}","Code":null,"Description":"{description} {:06}","Debit":{debit},"Credit":{credit},"Balance":{balance},"Id":"{}"}}"#,
        dice.u32(..1_000_000),
        guid(dice)
    )
}

/// What follows an account's transactions; the smallest bodies have no room for its holder.
fn account_end(dice: &mut fastrand::Rng, bytes: usize) -> String {
    let id = guid(dice);
    if bytes < 1_500 {
        return format!(r#"],"Title":"Compte chèques CAD","Id":"{id}"}}"#);
    }
    format!(
        r#"],"TransitNumber":"10432","InstitutionNumber":"777","OverdraftLimit":0,"Title":"Compte chèques CAD","AccountNumber":"{:07}","LastFourDigits":null,"Balance":{{"Available":4310.55,"Current":4310.55,"Limit":null}},"Category":"Operations","Type":"Chequing","Currency":"CAD","Holder":{{"Name":"Éloïse Tremblay","Address":{{"CivicAddress":"4820 Rue Sainte-Hélène App. 3","City":"Montréal","Province":"QC","PostalCode":"H2V 1K4","POBox":null,"Country":"CA"}},"Email":"eloise.tremblay@example.ca","PhoneNumber":"(514)555-0137"}},"AccountType":"Personal","Id":"{id}"}}"#,
        dice.u32(..10_000_000)
    )
}

fn guid(dice: &mut fastrand::Rng) -> String {
    let n = dice.u128(..);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        n as u32,
        (n >> 32) as u16,
        (n >> 48) as u16,
        (n >> 64) as u16,
        n >> 80
    )
}

fn letters(dice: &mut fastrand::Rng, count: usize) -> String {
    (0..count).map(|_| dice.alphanumeric()).collect()
}
