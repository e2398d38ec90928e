//! The calls that come before data of a LoginId is there, one after the other: a session, then its accounts detail, asked
//! for as often as it is pending (docs.flinks.com guides/getting-started/key-concepts). Whoever goes through it decides
//! how long to go on; it makes one call at a time and never waits between two.

use std::time::SystemTime;

use bytes::Bytes;

use super::client::{Attributes, Client, Session};
use super::code::{CallError, Verdict};
use crate::config::Endpoint;

/// How far it has come with one LoginId.
#[derive(Default)]
pub struct Gathering {
    session: Option<Session>,
    accounts: Accounts,
    /// Since when it is pending.
    pending: Option<SystemTime>,
}

#[derive(Default, PartialEq, Eq)]
enum Accounts {
    #[default]
    NotAsked,
    /// Flinks has said that it works on it.
    Pending,
    Ready,
}

impl Gathering {
    /// Goes on with a session whose accounts were pending, and have been since then.
    pub fn resume(session: Session, since: SystemTime) -> Gathering {
        Gathering { session: Some(session), accounts: Accounts::Pending, pending: Some(since) }
    }

    /// The session whose accounts are pending, and since when they are.
    pub fn pending(&self) -> Option<(&str, SystemTime)> {
        self.request_id().zip(self.pending)
    }

    /// One call further: the accounts detail, once it is there. A session that was idle for too long is made anew before,
    /// which costs two calls and no attempt.
    ///
    /// # Errors
    /// As the calls; pending has the verdict [`Verdict::Wait`].
    pub async fn step(&mut self, client: &Client, login_id: &str) -> Result<Option<Bytes>, CallError> {
        self.forget_idle(client);
        let Some(session) = &mut self.session else {
            self.session = Some(client.authorize(login_id).await?);
            return Ok(None);
        };
        let answer = match self.accounts {
            Accounts::Pending => client.accounts_detail_async(session).await,
            Accounts::NotAsked | Accounts::Ready => client.accounts_detail(session).await,
        };
        match &answer {
            // It waited for too long for its turn, which is nobody's fault.
            Err(CallError::SessionIdle) => {
                *self = Gathering::default();
                return Ok(None);
            }
            Ok(_) => (self.accounts, self.pending) = (Accounts::Ready, None),
            // After any other failure Flinks may never have taken the question, so it is put once more.
            Err(error) if error.verdict() == Verdict::Wait => {
                self.accounts = Accounts::Pending;
                self.pending.get_or_insert_with(SystemTime::now);
            }
            Err(_) => {}
        }
        answer.map(Some)
    }

    /// One call further towards this endpoint's attributes: those, once they are there. The accounts come before, as
    /// asking for them is what readies the attributes (docs.flinks.com guides/enrich); they are dropped.
    ///
    /// # Errors
    /// As [`Gathering::step`].
    pub async fn attributes(
        &mut self,
        client: &Client,
        login_id: &str,
        endpoint: &Endpoint,
    ) -> Result<Option<Attributes>, CallError> {
        self.forget_idle(client);
        let Some(session) = self.session.as_mut().filter(|_| self.accounts == Accounts::Ready) else {
            self.step(client, login_id).await?;
            return Ok(None);
        };
        match client.attributes(session, login_id, endpoint).await {
            Err(CallError::SessionIdle) => {
                *self = Gathering::default();
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    /// Whether the next call is one of attributes.
    pub fn is_ready(&self) -> bool {
        self.session.is_some() && self.accounts == Accounts::Ready
    }

    /// Flinks' id of the session, if there is one.
    pub fn request_id(&self) -> Option<&str> {
        self.session.as_ref().map(Session::request_id)
    }

    fn forget_idle(&mut self, client: &Client) {
        if self.session.as_ref().is_some_and(|session| session.is_idle(client.session_idle())) {
            *self = Gathering::default();
        }
    }
}
