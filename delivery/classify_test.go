package delivery

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	tests := []struct {
		reply    string
		class    string
		action   Action
		blame    Blame
		suppress bool
	}{
		{"250 2.0.0 ok", "accepted", ActionDeliver, BlameNone, false},
		{"550 5.1.1 The email account that you tried to reach does not exist", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 5.1.1 <x@y.example>: Recipient address rejected: User unknown in virtual mailbox table", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 5.1.0 no such user here", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 No such user", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Requested action not taken: mailbox unavailable or user does not exist", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Unknown user", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"554 delivery error: dd This user doesn't have a yahoo.com account", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 5.5.0 Requested action not taken: mailbox unavailable", "mailbox_refuses", ActionBounce, BlameRecipient, false},
		{"550 5.1.10 null MX", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 5.1.6 moved", "mailbox_gone", ActionBounce, BlameRecipient, true},
		{"551 5.1.2 bad domain", "domain_unknown", ActionBounce, BlameRecipient, false},
		{"450 4.1.1 user unknown, for now", "mailbox_unknown", ActionRetry, BlameRecipient, false},
		{"550 5.2.1 The email account is disabled", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"552 5.2.2 over quota", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"552 mailbox is full", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"550 5.1.1 mailbox full", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"452 4.2.2 The email account is over quota", "mailbox_full", ActionRetry, BlameRecipient, false},
		{"552 5.3.4 message too large", "too_large", ActionBounce, BlameContent, false},
		{"552 message exceeds fixed maximum message size", "too_large", ActionBounce, BlameContent, false},
		{"452 4.5.3 too many recipients", "too_many_recipients", ActionRetry, BlameDestination, false},
		{"552 5.5.3 too many recipients", "too_many_recipients", ActionRetry, BlameDestination, false},
		{"451 4.7.1 Greylisting in action, please come back later", "greylist", ActionRetry, BlameDestination, false},
		{"450 4.2.0 <x@y>: Recipient address rejected: Greylisted", "greylist", ActionRetry, BlameDestination, false},
		{"421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume", "rate", ActionSuspend, BlameSource, false},
		{"421-4.7.28 unusual rate of mail", "rate", ActionSuspend, BlameSource, false},
		{"450 4.7.28 unusual rate", "rate", ActionSuspend, BlameSource, false},
		{"451 4.7.500 Server busy. Please try again later", "rate", ActionSuspend, BlameSource, false},
		{"451 4.7.650 The mail server has been temporarily rate limited", "rate", ActionSuspend, BlameSource, false},
		{"421 closing", "busy", ActionSuspend, BlameDestination, false},
		{"452 4.3.1 insufficient system storage", "busy", ActionSuspend, BlameDestination, false},
		{"421 4.3.2 system not accepting network messages", "busy", ActionSuspend, BlameDestination, false},
		{"550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "blocked_source", ActionBounce, BlameSource, false},
		{"550 5.1.1 rejected: see spamhaus", "blocked_source", ActionBounce, BlameSource, false},
		{"550 5.7.26 unauthenticated email is not accepted due to the domain's DMARC policy", "authentication", ActionBounce, BlameSender, false},
		{"550 5.7.515 Access denied, sending domain does not meet the required authentication level", "authentication", ActionBounce, BlameSender, false},
		{"550 SPF check failed", "authentication", ActionBounce, BlameSender, false},
		{"550 5.7.1 Our system has detected that this message is likely unsolicited mail", "spam", ActionBounce, BlameContent, false},
		{"550 5.7.1 To best protect mail that is sent to users, this message has been blocked: likely unsolicited", "spam", ActionBounce, BlameContent, false},
		{"550 5.1.8 Bad sender's system address", "sender_refused", ActionBounce, BlameSender, false},
		{"554 5.7.1 message contains virus", "virus", ActionBounce, BlameContent, false},
		{"550 5.7.1 relaying denied", "relay_denied", ActionBounce, BlameDestination, false},
		{"550 5.7.1 policy", "policy", ActionBounce, BlameDestination, false},
		{"530 5.7.0 Must issue a STARTTLS command first", "tls_required", ActionRetry, BlameUs, false},
		{"530 5.7.0 authentication required", "auth_required", ActionSuspend, BlameUs, false},
		{"535 5.7.8 bad credentials", "auth_required", ActionSuspend, BlameUs, false},
		{"501 5.5.4 syntax", "protocol", ActionBounce, BlameUs, false},
		{"550 수신자가 존재하지 않습니다", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		// Other languages, and what providers say in their own way: as their help pages, and collections of replies, have it.
		{"421 HL:IFC 163 smtp9,Dc0,1 192.0.2.1 1700000000", "rate", ActionSuspend, BlameSource, false},
		{"421 HL:REP 163 smtp9", "rate", ActionSuspend, BlameSource, false},
		{"450 MI:DMC 163 smtp9", "rate", ActionSuspend, BlameSource, false},
		{"451 DT:SPM 163 smtp9, please try again", "spam", ActionRetry, BlameContent, false},
		{"554 DT:SPM 163 smtp9", "spam", ActionBounce, BlameContent, false},
		{"450 DT:RBL 163 smtp9", "blocked_source", ActionRetry, BlameSource, false},
		{"450 WM:BLI 163 smtp9", "blocked_source", ActionRetry, BlameSource, false},
		{"550 User not found: ann@163.example", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Mailbox not found. http://service.mail.qq.example/cgi-bin/help?subtype=1&&id=20022&&no=1000728", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Mailbox unavailable or access denied", "mailbox_refuses", ActionBounce, BlameRecipient, false},
		{"550 Domain frequency limited", "rate", ActionBounce, BlameSource, false},
		{"550 Suspected spam ip", "blocked_source", ActionBounce, BlameSource, false},
		{"550 Mail content denied", "spam", ActionBounce, BlameContent, false},
		{"550 Mail is rejected by recipients", "mailbox_refuses", ActionBounce, BlameRecipient, false},
		{"550 x is a deactivated mailbox", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"550 该用户不存在", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 收件人空间不足", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"421 4.3.2 Your IP(192.0.2.1) is filtered and this connection will be closed. You must register your IP to http://realip.naver.example", "blocked_source", ActionSuspend, BlameSource, false},
		{"421 4.3.1 You send too many messages.", "rate", ActionSuspend, BlameSource, false},
		{"421 4.4.5 CCRT 192.0.2.1: Connection refused. Server is busy(RT)", "busy", ActionSuspend, BlameDestination, false},
		{"550 5.1.1 RUSR 192.0.2.1: No such user: <ann@hanmail.example>", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 5.1.1 Inactive mbox", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"550 5.1.1 Suspended user", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"550 You are registered as spammer (by user's reject list)", "mailbox_refuses", ActionBounce, BlameRecipient, false},
		{"554 5.7.1 DAS51 192.0.2.1: Your mail is blocked automatically by anti-spam system. (E06)", "spam", ActionBounce, BlameContent, false},
		{"550 5.7.1 your access was denied. Since you sent too many e-mails,you are not allowed to send more e-mails within 24 hours", "rate", ActionBounce, BlameSource, false},
		{"550 5.1.1 hhtzumeItI371 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"552 5.1.1 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"550 svxsoAJqydXC2 Adresse IP source bloquee pour incident de spam. Client host blocked for spamming issues. OFR006_101", "blocked_source", ActionBounce, BlameSource, false},
		{"550 Destinataire inconnu ou boite aux lettres desactivee", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"554 IP=192.0.2.1 - None/bad reputation. Ask your postmaster for help or to contact tobr@rx.t-online.example for reset. (NOWL)", "blocked_source", ActionBounce, BlameSource, false},
		{"550 Unbekannter Empfänger", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Adressat unbekannt oder Mailbox deaktiviert", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"552 Benutzer hat zuviele Mails auf dem Server", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"550 Destinatario sconosciuto o mailbox disatttivata", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"550 Indirizzo inesistente", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Esta casilla ha expirado por falta de uso", "mailbox_disabled", ActionBounce, BlameRecipient, false},
		{"550 Nie ma takiego konta", "mailbox_unknown", ActionBounce, BlameRecipient, true},
		{"550 Wiadomosc zostala odrzucona przez system antyspamowy", "spam", ActionBounce, BlameContent, false},
		{"552 too much mail data", "mailbox_full", ActionBounce, BlameRecipient, false},
		{"599 ?", "unknown", ActionBounce, BlameNone, false},
		{"451 ?", "unknown", ActionRetry, BlameNone, false},
	}
	for _, tt := range tests {
		r, err := ParseReply(tt.reply)
		require.NoError(t, err)
		v := Classify(r, PhaseRcpt)
		assert.Equal(t, Verdict{tt.class, tt.action == ActionBounce, tt.blame, tt.action, tt.suppress}, v, tt.reply)
	}
}

func TestClassifyByPhase(t *testing.T) {
	t.Parallel()
	verdict := func(text string, p Phase) Verdict {
		r, err := ParseReply(text)
		require.NoError(t, err)
		return Classify(r, p)
	}
	require.Equal(t, ActionSuspend, verdict("450 come back", PhaseConnect).Action)
	require.Equal(t, ActionRetry, verdict("450 come back", PhaseRcpt).Action)
	require.Equal(t, ActionBounce, verdict("554 no service", PhaseConnect).Action)
	require.Equal(t, ActionSuspend, verdict("554 5.7.1 your ip is on a blocklist", PhaseConnect).Action)
	for _, p := range []Phase{PhaseConnect, PhaseMail} {
		require.False(t, verdict("550 5.1.1 unknown", p).Suppress) // not said about a recipient
	}
	require.True(t, verdict("550 5.1.1 unknown", PhaseData).Suppress)
}

func TestRulesAreComplete(t *testing.T) {
	t.Parallel()
	r, err := parseRules(rulesText)
	require.NoError(t, err)
	require.Contains(t, r.classes, classUnknown)
	require.Contains(t, r.classes, classAuthRequired)
	require.Contains(t, r.classes, classTooMany)
	for name, c := range r.classes {
		require.Contains(t, []Action{ActionRetry, ActionSuspend}, c.on4, name)
		require.Contains(t, []Action{ActionRetry, ActionSuspend, ActionBounce}, c.on5, name)
		require.Contains(t, []Blame{BlameNone, BlameRecipient, BlameSender, BlameSource, BlameContent, BlameDestination, BlameUs}, c.blame, name)
	}
	for _, bad := range []string{
		"class x recipient", "text nobody x", "sure unknown (", "class x none retry bounce no\nstatus x 1", "class x none retry bounce no\ncode x y",
		"class x none retry bounce no\nstatus x 7.5-8.9", "class x none retry bounce no\nwhat x y",
	} {
		_, err := parseRules(bad)
		require.Error(t, err, bad)
	}
}

func TestParseReply(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"550 5.1.1 user unknown": "550 5.1.1 user unknown",
		"550-5.1.1 user unknown": "550 5.1.1 user unknown",
		" 421 ":                  "421",
		"5.1.1 unknown":          "550 5.1.1 unknown",
		"4.2.2 full":             "450 4.2.2 full",
	} {
		r, err := ParseReply(text)
		require.NoError(t, err, text)
		require.Equal(t, want, r.String())
	}
	for _, bad := range []string{"", "hello", "99 x", "600 x", "55x"} {
		_, err := ParseReply(bad)
		require.Error(t, err, bad)
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("550 5.1.1 user unknown")
	f.Add("421 4.7.28 slow down, try again in 300 seconds")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReply(text)
		if err != nil {
			return
		}
		for _, p := range []Phase{PhaseConnect, PhaseMail, PhaseRcpt, PhaseData} {
			v := Classify(r, p)
			require.NotEmpty(t, v.Class)
			require.Equal(t, v.Action == ActionBounce, v.Hard)
			if v.Hard || v.Suppress {
				require.True(t, r.Permanent())
			}
			require.False(t, v.Suppress && v.Blame != BlameRecipient)
		}
		require.GreaterOrEqual(t, delayHint(text), 0*delayHint(""))
	})
}
