package bounce

import (
	"regexp"
	"sync"

	"relayd/internal/mail"
)

// compiled are the patterns of free text.
type compiled struct {
	reply, status, address, tag, quoted, original                                     *regexp.Regexp
	answer, bounceSubject, bounceSender, bounceText, delayText, doneText, autoSubject *regexp.Regexp

	meanings []meaning
}

// meaning is the status that words stand for.
type meaning struct {
	words  *regexp.Regexp
	status mail.Status
}

// patterns are compiled once; a test reads them all.
var patterns = sync.OnceValue(func() *compiled {
	return &compiled{
		reply:    regexp.MustCompile(`(?:^|[^\d.@])([45][0-5]\d)[ -]+\(?#?((?:[45]\.\d{1,3}\.\d{1,3})?)`),
		status:   regexp.MustCompile(`(?:\b)[245]\.\d{1,3}\.\d{1,3}\b`),
		address:  regexp.MustCompile(`[A-Za-z0-9!#$%&'*+/=?^_{|}~.\-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62}\.)+[A-Za-z0-9\-]{2,63}`),
		tag:      regexp.MustCompile(`<[/!a-zA-Z][^<>@]{0,900}>`),
		quoted:   regexp.MustCompile(`(?m)^[ \t]*>.*$`),
		original: regexp.MustCompile(`(?im)^[-\s>*]*(-+ ?(this is a copy|original message|below this line|the body of the message|message header|unsent message|included is)|original message follows|below is a copy|a copy of the (original )?message|message headers? follow|received: from)`),

		answer: regexp.MustCompile(`(?i)^\W{0,3}(re|aw|antw|sv|rv|fwd?|wg|tr|답장|회신|전달|返信|転送|回复|答复|转发)\s*(\[\d+\])?\s*[:：]`),
		bounceSubject: regexp.MustCompile(`(?i)undeliver|undelivered|delivery (status|failure|failed|problem|report|notification|delay)|returned? (mail|to sender|message)|mail (delivery|system) (fail|error|subsystem)|failure notice|failed (mail|delivery)|could ?n[o']t (be )?(sent|deliver)|not delivered|message (delivery )?(delay|not delivered|undeliverable)|delayed mail|warning: (could not send|message)|non ?-?deliver` +
			`|nicht (zugestellt|zustellbar)|unzustellbar|zustellung (fehlgeschlagen|verzögert)|non remis|échec de (la )?remise|no entregado|no se puede entregar|mancata consegna` +
			`|반송|(전송|발송|배달|전달) ?(실패|지연)|(전송|배달|전달)(되지|하지) (않|못)|配信不能|(配信|送信|配達)できません|退信|退回`),
		bounceSender: regexp.MustCompile(`(?i)mailer[-_. ]?daemon|post ?master|mail delivery (sub)?system|(mail|system)[- ]?administrator|microsoft ?exchange|<>`),
		bounceText: regexp.MustCompile(`(?i)could not be delivered|was not delivered|not been delivered|wasn't delivered|not able to deliver|unable to deliver|permanent fatal errors|permanent error|did not reach|delivery (to the following|has failed|failed)|undeliverable|cannot be delivered|couldn't be delivered|returned to (the )?sender|no such user|user unknown|unknown user` +
			`|nicht zugestellt|fehler bei der nachrichtenzustellung|échec de la remise|n'a pas pu être (remis|distribué)` +
			`|반송|(전송|발송|배달|전달)(에|을|를)? ?실패|(전송|배달|전달)(되지|하지) (않|못)|(配信|送信|配達)できません|退信|退回`),
		delayText:   regexp.MustCompile(`(?i)delayed|will (be )?(retr|keep trying|continue)|still (being )?(tr(y|ied)|retried)|not yet been delivered|warning message only|you do not need to resend|지연되|verzögert`),
		doneText:    regexp.MustCompile(`(?i)(successfully|been) (delivered|relayed)|erfolgreich zugestellt|정상적으로 (배달|전달|전송)`),
		autoSubject: regexp.MustCompile(`(?i)^\W{0,3}(auto(matic|mated|matische|maattisch)?[- ]?(reply|response|antwort|respond)|auto:|(i am |i'm )?(currently )?out of (the )?office|ooo\b|on vacation|vacation|away from|abwesenheit|abwesend|réponse automatique|absence|respuesta automática|risposta automatica|fuori ufficio|부재|자동 ?(응답|회신)|自動(応答|返信)|不在(通知|のお知らせ)|自动回复)`),

		// What mail systems say in words of their own, not in replies: those are for the classifier. The first that fits
		// counts, so what is about a mailbox that exists comes first.
		meanings: []meaning{
			{regexp.MustCompile(`(?i)quota|mailbox (is )?full|용량|가득|容量|いっぱい|postfach[^.]{0,40}voll|boîte[^.]{0,40}pleine|buzón[^.]{0,40}lleno`), mail.Status{Class: 5, Subject: 2, Detail: 2}},
			{regexp.MustCompile(`(?i)휴면|비활성`), mail.Status{Class: 5, Subject: 2, Detail: 1}},
			{regexp.MustCompile(`(?i)\(nullmx\)`), mail.Status{Class: 5, Subject: 1, Detail: 10}},
			{regexp.MustCompile(`(?i)\bhost not found\b|\bnxdomain\b|\bunrouteable address\b|(couldn't|could not) find any host`), mail.Status{Class: 5, Subject: 1, Detail: 2}},
			{regexp.MustCompile(`(?i)not listed in (the )?(domino directory|public name)|unbekannter (empfänger|benutzer|nutzer)|(empfänger|benutzer|nutzer) (ist )?unbekannt|destinataire (est )?(inconnu|introuvable)`), mail.Status{Class: 5, Subject: 1, Detail: 1}},
			{regexp.MustCompile(`(수신자|사용자|받는 ?사람|계정|주소)[^.]{0,20}(없|존재하지)|(宛先|アドレス)[^。]{0,20}(存在しません|見つかりません)|(地址|用户|收件人|邮箱)[^。]{0,20}不存在`), mail.Status{Class: 5, Subject: 1, Detail: 1}},
		},
	}
})

// statusInWords returns what the words of a mail system stand for, zero for nothing that is known.
func statusInWords(text string) mail.Status {
	for _, m := range patterns().meanings {
		if m.words.MatchString(text) {
			return m.status
		}
	}
	return mail.Status{}
}
