//! What the cluster lets this client do with topics, by its own word and without trying: the authorised operations that
//! brokers add to a description when they are asked to (KIP-430, Kafka 2.3).
//!
//! The broker asks its authoriser about each operation for the principal of this very connection, so deny rules,
//! patterns, super users and `allow.everyone.if.no.acl.found` are in the answer. Nothing is written, no producer id is
//! taken, no group is joined and no topic made. What may be described tells of itself; what may not be described may not
//! be used either, since Kafka counts the right to read or to write as the right to describe.
//!
//! Groups could be asked about in the same way, and are not: librdkafka 2.12 was seen to end the process with a failed
//! assertion (`rd_kafka_enq_once_del_source_return`) after its question about a group had timed out.
//!
//! rust-rdkafka 0.39 does not wrap the call, so this file speaks to librdkafka itself. Each pointer is owned by one value
//! that frees it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka_sys::bindings as sys;

/// What may be done with a topic or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// These operations.
    Operations(BTreeSet<Operation>),
    /// Not even to describe it.
    Nothing,
    /// There is none of this name.
    Missing,
    /// The broker does not say: it is older than Kafka 2.3, or failed with this.
    Untold(String),
}

impl Allowed {
    /// Whether this operation is allowed; `None` if that cannot be told.
    pub fn includes(&self, operation: Operation) -> Option<bool> {
        match self {
            Allowed::Operations(operations) => Some(operations.contains(&operation)),
            Allowed::Nothing => Some(false),
            Allowed::Missing | Allowed::Untold(_) => None,
        }
    }
}

/// The operations that roles need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// To consume a topic, or to join a group and commit its offsets.
    Read,
    /// To publish to a topic.
    Write,
    /// To know that it is there.
    Describe,
}

/// Asks what may be done with these topics, in their order.
///
/// # Errors
/// When there is no answer in time, in librdkafka's words.
pub(super) fn of_topics(
    client: &rdkafka::client::NativeClient,
    topics: &[&str],
    patience: Duration,
) -> Result<Vec<Allowed>, String> {
    let names = c_strings(topics)?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let call = Call::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, patience)?;
    // SAFETY: `names` outlives the collection, which copies them anyway; client, options and queue are alive in `call`;
    // every pointer that comes out of the result is used only while `event`, which owns it, is.
    #[allow(unsafe_code)]
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let collection = Owned(collection, sys::rd_kafka_TopicCollection_destroy);
        sys::rd_kafka_DescribeTopics(call.client, collection.0, call.options.0, call.queue.0);
        let event = call.answer()?;
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err("an answer to another question".to_owned());
        }
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let described = slice(described, count);
        let of = |topic: &&str| {
            let found = described.iter().find(|one| text(sys::rd_kafka_TopicDescription_name(**one)) == **topic);
            let Some(found) = found else { return Allowed::Missing };
            let mut count = 0;
            let operations = sys::rd_kafka_TopicDescription_authorized_operations(*found, &mut count);
            judge(sys::rd_kafka_TopicDescription_error(*found), operations, count)
        };
        Ok(topics.iter().map(of).collect())
    }
}

/// Which of these topics this may be done with; those of which the cluster says nothing are left out, and all where it
/// does not answer. Blocks for `patience` and a moment.
pub(super) fn permitted<C: ClientContext>(
    client: &Client<C>,
    topics: &[Arc<str>],
    operation: Operation,
    patience: Duration,
) -> BTreeMap<String, bool> {
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let told = of_topics(client.native_client(), &names, patience).unwrap_or_default();
    let judged = names.iter().zip(told).filter_map(|(name, allowed)| match allowed {
        Allowed::Operations(operations) => Some(((*name).to_owned(), operations.contains(&operation))),
        // Metadata says these in words of their own.
        Allowed::Nothing | Allowed::Missing | Allowed::Untold(_) => None,
    });
    judged.collect()
}

fn c_strings(texts: &[&str]) -> Result<Vec<CString>, String> {
    texts.iter().map(|text| CString::new(*text).map_err(|_| format!("{text:?} has a NUL in it"))).collect()
}

/// One question to librdkafka's admin API: where its options stand and its answer comes.
struct Call {
    client: *mut sys::rd_kafka_t,
    options: Owned<sys::rd_kafka_AdminOptions_t>,
    queue: Owned<sys::rd_kafka_queue_t>,
    patience: Duration,
}

impl Call {
    /// The client must outlive it; both callers borrow it for longer.
    fn new(
        client: &rdkafka::client::NativeClient,
        what: sys::rd_kafka_admin_op_t,
        patience: Duration,
    ) -> Result<Call, String> {
        let client = client.ptr();
        let mut fault: [c_char; 256] = [0; 256];
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `client` is a live client; options and queue are fresh, and freed once, by `Owned`; the buffer has the
        // length that is told.
        #[allow(unsafe_code)]
        unsafe {
            let options = Owned(sys::rd_kafka_AdminOptions_new(client, what), sys::rd_kafka_AdminOptions_destroy);
            let queue = Owned(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
            sys::rd_kafka_AdminOptions_set_request_timeout(options.0, millis, fault.as_mut_ptr(), fault.len());
            let refused = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.0, 1);
            if !refused.is_null() {
                sys::rd_kafka_error_destroy(refused);
                return Err("librdkafka cannot ask for authorised operations".to_owned());
            }
            Ok(Call { client, options, queue, patience })
        }
    }

    /// Waits for the answer.
    fn answer(&self) -> Result<Owned<sys::rd_kafka_event_t>, String> {
        // librdkafka's own limit comes first.
        let millis = i32::try_from((self.patience + Duration::from_secs(1)).as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive; an event is freed once, by `Owned`, and its texts are copied before that.
        #[allow(unsafe_code)]
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.queue.0, millis);
            if event.is_null() {
                return Err("no answer in time".to_owned());
            }
            let event = Owned(event, sys::rd_kafka_event_destroy);
            if sys::rd_kafka_event_error(event.0) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(text(sys::rd_kafka_event_error_string(event.0)));
            }
            Ok(event)
        }
    }
}

/// Something of librdkafka's, with what frees it.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the constructor that belongs to the function, and is freed here alone.
        #[allow(unsafe_code)]
        unsafe {
            (self.1)(self.0);
        }
    }
}

/// # Safety
/// The pointers belong to a result that is alive; `operations` is null or has `count` elements.
#[allow(unsafe_code)]
unsafe fn judge(
    error: *const sys::rd_kafka_error_t,
    operations: *const sys::rd_kafka_AclOperation_t,
    count: usize,
) -> Allowed {
    use sys::rd_kafka_AclOperation_t as Acl;
    use sys::rd_kafka_resp_err_t as Code;
    // SAFETY: as above; a null error is none.
    unsafe {
        let code = if error.is_null() { Code::RD_KAFKA_RESP_ERR_NO_ERROR } else { sys::rd_kafka_error_code(error) };
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => return Allowed::Nothing,
            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                return Allowed::Missing;
            }
            _ => return Allowed::Untold(text(sys::rd_kafka_error_name(error))),
        }
        // The count means nothing then.
        if operations.is_null() {
            return Allowed::Untold("the broker does not say".to_owned());
        }
        let operation = |acl: &Acl| match acl {
            Acl::RD_KAFKA_ACL_OPERATION_READ => Some(Operation::Read),
            Acl::RD_KAFKA_ACL_OPERATION_WRITE => Some(Operation::Write),
            Acl::RD_KAFKA_ACL_OPERATION_DESCRIBE => Some(Operation::Describe),
            _ => None,
        };
        let operations: BTreeSet<Operation> = slice(operations, count).iter().filter_map(operation).collect();
        // Who may describe a topic may do something with it: an authoriser that names nothing does not tell.
        if operations.is_empty() {
            return Allowed::Untold("the broker names no operation".to_owned());
        }
        Allowed::Operations(operations)
    }
}

/// # Safety
/// The pointer is null or has `count` elements that live for as long as the slice is used.
#[allow(unsafe_code)]
unsafe fn slice<'a, T>(pointer: *const T, count: usize) -> &'a [T] {
    if pointer.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(pointer, count) }
}

/// # Safety
/// The pointer is null or a C string.
#[allow(unsafe_code)]
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
