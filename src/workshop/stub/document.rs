//! The stand-in's longer answers. All data is invented.

use serde_json::{Value, json};

/// Where a LoginId and a RequestId go in [`accounts_detail`].
pub(super) const LOGIN_PLACE: &str = "\"<login>\"";
pub(super) const REQUEST_PLACE: &str = "\"<request>\"";

/// An accounts detail with two accounts, in the shape of the contract's section 1.2.
pub(super) fn accounts_detail(transactions: usize) -> String {
    let account = |number: usize, title: &str, kind: &str| {
        let transactions: Vec<Value> = (0..transactions)
            .map(|at| {
                let debit = at % 3 != 0;
                json!({
                    "Date": format!("2026-{:02}-{:02}", 11 - (at / 28) % 11, 28 - at % 28),
                    "Code": null,
                    "Description": if debit { "INVENTED SHOP 42 OTTAWA" } else { "PAYROLL INVENTED LTD" },
                    "Debit": debit.then_some(12.34 + at as f64),
                    "Credit": (!debit).then_some(1210.55),
                    "Balance": 2416.68 - at as f64,
                    "Id": format!("0b0e2a50-5a4a-4c5a-{number:04x}-{at:012x}"),
                })
            })
            .collect();
        json!({
            "Transactions": transactions,
            "TransitNumber": "00431",
            "InstitutionNumber": "777",
            "OverdraftLimit": 0,
            "Title": title,
            "AccountNumber": format!("100436{number}"),
            "LastFourDigits": null,
            "Balance": { "Available": 2416.68, "Current": 2416.68, "Limit": null },
            "Category": "Operations",
            "Type": kind,
            "Currency": "CAD",
            "Holder": {
                "Name": "Invented Person",
                "Address": {
                    "CivicAddress": "1 Invented Street",
                    "City": "Ottawa",
                    "Province": "ON",
                    "PostalCode": "K1A 0A1",
                    "POBox": null,
                    "Country": "CA",
                },
                "Email": "invented@example.com",
                "PhoneNumber": "(613) 555-0100",
            },
            "AccountType": "Personal",
            "Id": format!("c2f1a0de-91b4-4f7e-fed8-{number:012x}"),
        })
    };
    let mut login = login("");
    login["Id"] = json!("<login>");
    json!({
        "HttpStatusCode": 200,
        "Accounts": [account(1, "Chequing CAD", "Chequing"), account(2, "Savings CAD", "Savings")],
        "InstitutionName": "FlinksCapital",
        "InstitutionId": 14,
        "Institution": "FlinksCapital",
        "Login": login,
        "RequestId": "<request>",
    })
    .to_string()
}

/// The member `Login` of several answers.
pub(super) fn login(login_id: &str) -> Value {
    json!({
        "Username": "4519000011112222",
        "IsScheduledRefresh": false,
        "LastRefresh": "2026-11-20T14:07:31.4820917",
        "Type": "Personal",
        "Id": login_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_detail_is_one_that_a_webhook_could_bring() {
        let text = accounts_detail(500);
        assert_eq!((text.matches(LOGIN_PLACE).count(), text.matches(REQUEST_PLACE).count()), (1, 1));
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body.pointer("/Accounts/1/Transactions").and_then(Value::as_array).map(Vec::len), Some(500));
        assert_eq!(body.pointer("/Login/Id"), Some(&json!("<login>")));
        let date = |at: usize| body["Accounts"][0]["Transactions"][at]["Date"].as_str().unwrap().to_owned();
        assert_eq!((date(0), date(27), date(28)), ("2026-11-28".into(), "2026-11-01".into(), "2026-10-28".into()));
        assert_eq!(date(308), "2026-11-28", "months go round");
    }
}
