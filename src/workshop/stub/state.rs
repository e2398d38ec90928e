//! What the stand-in remembers: keys, tokens, sessions, and what runs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fault::{Fault, FaultShare};
use super::{Counts, Said};
use crate::flinks::FlinksCode;

/// An unused token's life.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 60);
/// How long a RequestId may be idle.
const SESSION_IDLE: Duration = Duration::from_secs(8 * 60);

pub(super) struct Keys {
    pub(super) authorize: String,
    pub(super) api: String,
}

pub(super) struct State {
    pub(super) keys: Keys,
    /// Shares of calls.
    pub(super) shares: Vec<FaultShare>,
    /// Shares of LoginIds.
    pub(super) login_shares: Vec<FaultShare>,
    pub(super) login_faults: HashMap<String, Fault>,
    /// By number: when it was issued, and whether it has been used.
    pub(super) tokens: HashMap<u64, (Instant, bool)>,
    pub(super) sessions: HashMap<u64, SessionState>,
    /// How often each LoginId was authorised, where that decides what it is answered.
    pub(super) authorized: HashMap<String, u32>,
    /// Numbers of tokens and sessions, oldest first, to forget them some day.
    pub(super) token_ages: VecDeque<(Instant, u64)>,
    pub(super) session_ages: VecDeque<(Instant, u64)>,
    pub(super) next: u64,
    pub(super) running: HashMap<String, Running>,
    pub(super) counts: Counts,
}

pub(super) struct SessionState {
    pub(super) login_id: Arc<str>,
    pub(super) used: Instant,
    /// How many more times accounts detail is under way.
    pub(super) pending: u32,
    /// Whether accounts detail was there.
    pub(super) detailed: bool,
    /// Which of the lengths of an accounts detail was asked for last.
    pub(super) days: usize,
    /// Whether what it was made from has no transactions.
    pub(super) empty: bool,
}

#[derive(Default)]
pub(super) struct Running {
    pub(super) calls: usize,
    pub(super) attributes: usize,
}

impl State {
    pub(super) fn new(
        authorize_key: &str,
        api_key: &str,
        shares: Vec<FaultShare>,
        login_shares: Vec<FaultShare>,
    ) -> State {
        State {
            keys: Keys { authorize: authorize_key.to_owned(), api: api_key.to_owned() },
            shares,
            login_shares,
            login_faults: HashMap::new(),
            tokens: HashMap::new(),
            sessions: HashMap::new(),
            authorized: HashMap::new(),
            token_ages: VecDeque::new(),
            session_ages: VecDeque::new(),
            next: 0,
            running: HashMap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn issue_token(&mut self, clock: f64) -> String {
        let (now, number) = (Instant::now(), self.number());
        self.tokens.insert(number, (now, false));
        self.token_ages.push_back((now, number));
        // Kept for as long again, to tell what is too old from what never was.
        while self.token_ages.front().is_some_and(|(issued, _)| scaled(*issued, clock) > 2 * TOKEN_LIFE) {
            if let Some((_, old)) = self.token_ages.pop_front() {
                self.tokens.remove(&old);
            }
        }
        identifier(TOKEN_MARK, number)
    }

    /// Uses a token up, or says why it cannot be used.
    pub(super) fn use_token(&mut self, token: Option<u64>, clock: f64) -> Option<Said> {
        let refused = |why| Some(Said::code(401, FlinksCode::Unauthorized, why));
        let Some((issued, used)) = token.and_then(|token| self.tokens.get_mut(&token)) else {
            self.counts.keys_refused += 1;
            return refused("(invented) no such token");
        };
        if std::mem::replace(used, true) {
            self.counts.tokens_reused += 1;
            return refused("(invented) the token was used before");
        }
        if scaled(*issued, clock) > TOKEN_LIFE {
            self.counts.tokens_expired += 1;
            return refused("(invented) the token is too old");
        }
        None
    }

    /// A session; the first `empties` of a LoginId have no transactions.
    pub(super) fn issue_session(&mut self, login_id: &str, pending: u32, empties: u32, clock: f64) -> String {
        let (now, number) = (Instant::now(), self.number());
        let empty = empties > 0 && {
            let before = self.authorized.entry(login_id.to_owned()).or_default();
            *before += 1;
            *before <= empties
        };
        let session = SessionState { login_id: login_id.into(), used: now, pending, detailed: false, days: 0, empty };
        self.sessions.insert(number, session);
        self.session_ages.push_back((now, number));
        while self.session_ages.front().is_some_and(|(looked, _)| scaled(*looked, clock) > 2 * SESSION_IDLE) {
            let Some((_, old)) = self.session_ages.pop_front() else { break };
            match self.sessions.get(&old).map(|session| session.used) {
                Some(used) if scaled(used, clock) <= 2 * SESSION_IDLE => self.session_ages.push_back((now, old)),
                _ => drop(self.sessions.remove(&old)),
            }
        }
        identifier(SESSION_MARK, number)
    }

    /// The session of a RequestId, used now, or why there is none.
    pub(super) fn session(&mut self, request_id: &str, clock: f64) -> Result<&mut SessionState, Said> {
        let number = number(request_id).filter(|number| self.sessions.contains_key(number));
        let Some(session) = number.and_then(|number| self.sessions.get_mut(&number)) else {
            return Err(Said::code(400, FlinksCode::SessionNonexistent, "(invented) no such session"));
        };
        if scaled(session.used, clock) > SESSION_IDLE {
            self.counts.sessions_expired += 1;
            return Err(Said::code(400, FlinksCode::SessionExpired, "RequestId is invalid or session has ended."));
        }
        session.used = Instant::now();
        Ok(session)
    }
}

/// How long ago that was, by the stand-in's clock.
fn scaled(then: Instant, clock: f64) -> Duration {
    Duration::try_from_secs_f64(then.elapsed().as_secs_f64() * clock).unwrap_or(Duration::MAX)
}

pub(super) const TOKEN_MARK: &str = "11111111";
pub(super) const SESSION_MARK: &str = "2b9f8c10";

/// An id in the form that Flinks' have.
pub(super) fn identifier(mark: &str, number: u64) -> String {
    format!("{mark}-6a35-4a0e-{:04x}-{:012x}", number >> 48, number & 0xFFFF_FFFF_FFFF)
}

/// The number of such an id.
pub(super) fn number(identifier: &str) -> Option<u64> {
    let mut parts = identifier.split('-').skip(3);
    let (high, low) = (u64::from_str_radix(parts.next()?, 16).ok()?, u64::from_str_radix(parts.next()?, 16).ok()?);
    (high <= 0xFFFF && low <= 0xFFFF_FFFF_FFFF).then_some(high << 48 | low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_carry_their_number() {
        for expected in [0, 1, 0xFFFF_FFFF_FFFF, 1 << 48, u64::MAX] {
            assert_eq!(number(&identifier(TOKEN_MARK, expected)), Some(expected));
        }
        for other in ["", "a-b-c-x-e", "2b9f8c10-6a35-4a0e-0000-1000000000000"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_and_sessions_end_and_are_forgotten() {
        let mut state = State::new("authorize", "api", Vec::new(), Vec::new());
        let token = state.issue_token(1.0);
        assert!(state.use_token(number(&token), 1.0).is_none());
        assert!(state.use_token(number(&token), 1.0).is_some());
        let late = state.issue_token(1.0);
        let session = state.issue_session("login", 0, 0, 1.0);
        assert!(state.session(&session, 1.0).is_ok());

        tokio::time::advance(TOKEN_LIFE + Duration::from_secs(1)).await;
        assert!(state.use_token(number(&late), 1.0).is_some());
        let name = |said: Result<&mut SessionState, Said>| said.map_or_else(|said| said.name, |_| "ok");
        assert_eq!(name(state.session(&session, 1.0)), "SESSION_EXPIRED");
        assert_eq!(name(state.session("another", 1.0)), "SESSION_NONEXISTENT");
        assert_eq!((state.counts.tokens_reused, state.counts.tokens_expired, state.counts.sessions_expired), (1, 1, 1));

        tokio::time::advance(2 * TOKEN_LIFE).await;
        let (_, session) = (state.issue_token(1.0), state.issue_session("login", 0, 0, 1.0));
        assert_eq!((state.tokens.len(), state.sessions.len()), (1, 1));
        assert!(state.session(&session, 1.0).is_ok());
    }
}
