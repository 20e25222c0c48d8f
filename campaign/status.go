package campaign

import (
	"encoding/json"
	"strings"
)

// subscription is what a contact list says of a contact's wish to hear from us.
type subscription uint8

const (
	statusAbsent subscription = iota // the list's default decides
	subscribed
	unsubscribed
	statusInvalid
)

// parseStatus reads a subscription status in all its usual spellings, without regard to case and surrounding blanks.
func parseStatus(s string) subscription {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "":
		return statusAbsent
	case "true", "1", "yes", "y", "t", "on", "subscribed", "opt_in":
		return subscribed
	case "false", "0", "no", "n", "f", "off", "unsubscribed", "opt_out":
		return unsubscribed
	}
	return statusInvalid
}

// statusOf is parseStatus for what JSON decoding yields.
func statusOf(x any) subscription {
	switch x := x.(type) {
	case nil:
		return statusAbsent
	case bool:
		if x {
			return subscribed
		}
		return unsubscribed
	case json.Number:
		return parseStatus(x.String())
	case string:
		return parseStatus(x)
	}
	return statusInvalid
}

// field is what a column of a contact list holds.
type field uint8

const (
	fieldAttribute field = iota
	fieldEmail
	fieldStatus
	fieldDrop
)

// columnOf recognises the usual names of columns; any other column is an attribute of that name.
func columnOf(header string) (field, string) {
	switch strings.NewReplacer(" ", "", "_", "", "-", "", ".", "").Replace(strings.ToLower(header)) {
	case "email", "mail", "emailaddress", "mailaddress", "emailaddr", "이메일", "메일", "이메일주소":
		return fieldEmail, ""
	case "status", "subscriptionstatus", "subscribed", "subscription", "issubscribed", "optin", "subscribe", "수신동의", "구독여부", "구독상태":
		return fieldStatus, ""
	case "name", "fullname", "customername", "displayname", "이름", "성명", "고객명":
		return fieldAttribute, "Name"
	case "gender", "sex", "성별":
		return fieldAttribute, "Gender"
	case "createtime", "createdat", "created", "createdtime", "creationtime", "createdate", "creationdate", "signupdate", "registeredat", "가입일", "가입일시", "생성일", "생성일시":
		return fieldAttribute, "CreateTime"
	}
	return fieldAttribute, header
}

// mappedColumn is columnOf with the names that the upload's column_map gives.
func mappedColumn(header string, columns map[string]string) (field, string) {
	to, ok := columns[header]
	if !ok {
		return columnOf(header)
	}
	switch name, isAttribute := strings.CutPrefix(to, "attributes."); {
	case to == "":
		return fieldDrop, ""
	case isAttribute:
		return fieldAttribute, name
	case to == "email":
		return fieldEmail, ""
	case to == "status" || to == "subscription_status":
		return fieldStatus, ""
	case to == "name" || to == "gender" || to == "create_time":
		return columnOf(to)
	default:
		return fieldAttribute, to
	}
}
