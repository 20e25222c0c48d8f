package demo

import (
	"encoding/base64"

	"relayd/internal/api"
)

const promotionSubject = "{{Name}} 님, 겨울 세일이 시작됐어요 · Winter sale"

const promotionHTML = `<!DOCTYPE html>
<html lang="ko">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Winter sale</title>
</head>
<body style="margin:0;background:#f4f4f0;font-family:sans-serif;color:#222">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0"><tr><td align="center">
<table role="presentation" width="480" cellpadding="0" cellspacing="0" style="background:#ffffff">
<tr><td><img src="cid:sale.png" width="480" alt="겨울 세일 · Winter sale" style="display:block;width:100%"></td></tr>
<tr><td style="padding:24px">
<h1 style="font-size:22px;margin:0 0 12px">{{Name}} 님, 안녕하세요!</h1>
<p>Hello {{Name}},</p>
{{Body}}
<p><a href="https://shop.example/sale" style="background:#ee5253;color:#ffffff;padding:10px 18px;text-decoration:none">지금 보러 가기 · Shop now</a></p>
</td></tr>
<tr><td style="padding:16px 24px;font-size:12px;color:#777">
예시 상점 · Example Shop, 1 Harbor Street.
<a href="{{unsubscribe_url}}" style="color:#777">수신 거부 · Unsubscribe</a>
</td></tr>
</table>
</td></tr></table>
</body>
</html>
`

const promotionBody = `<p>코트, 스웨터, 장갑까지 이번 주 일요일 밤까지 최대 40% 할인합니다. 3만원 이상 주문하시면 배송비가 무료예요.</p>
<p>Coats, sweaters and gloves are up to 40% off until Sunday night. Orders above 30 ship free.</p>`

// Promotion makes the campaign of the demo. Its picture is as heavy as it takes for a message of about size octets, or a
// little more; below about 8,000 octets a message is as large as its text and the plain picture.
func Promotion(size int64) (api.CreateCampaign, error) {
	// Header, signatures and the two text parts, as measured; base64 in lines of 76 makes 78 octets of 57.
	const around = 5_200
	picture, err := Picture(int(max(0, size-around) * 57 / 78))
	if err != nil {
		return api.CreateCampaign{}, err
	}
	return api.CreateCampaign{
		Name: "Winter sale",
		From: api.Mailbox{Email: "deals@" + senderDomain, Name: "예시 상점 Example Shop"},
		Template: api.CampaignTemplate{
			Subject: "{{Subject}}",
			HTML:    promotionHTML,
			Images: []api.CampaignImage{{
				Name: "sale.png", ContentID: "sale.png", ContentType: "image/png",
				Content: base64.StdEncoding.EncodeToString(picture),
			}},
		},
		Data: map[string]any{"Subject": promotionSubject, "Body": promotionBody},
		Tags: map[string]string{"demo": "yes"},
	}, nil
}
