"""Languages of public translation models: codes, scripts and English names.

The languages of mBART-25 and -50, M2M-100 and NLLB-200, which are those of
Flores-200, and their codes in ISO 639-1, 639-2 and 639-3.
"""

# A line a language: codes, scripts (ISO 15924) and names, in three columns.
# The first code is NLLB's, of ISO 639-3. A macrolanguage's code ('ar', 'zh')
# stands with its member that the code means where nothing else is said. The
# first script is the one of Unicode's likely subtags, but where a language has
# few writers in it.
TABLE = """
ace              Latn,Arab Acehnese/Achinese
acm              Arab      Mesopotamian Arabic/Iraqi Arabic
acq              Arab      Ta'izzi-Adeni Arabic
aeb              Arab      Tunisian Arabic
afr,af           Latn      Afrikaans
ajp              Arab      South Levantine Arabic
aka,ak           Latn      Akan
als,sq,sqi,alb   Latn      Albanian/Tosk Albanian
amh,am           Ethi      Amharic
apc              Arab      North Levantine Arabic/Levantine Arabic
arb,ar,ara       Arab      Arabic/Modern Standard Arabic/Standard Arabic
ars              Arab      Najdi Arabic
ary              Arab      Moroccan Arabic
arz              Arab      Egyptian Arabic
asm,as           Beng      Assamese
ast              Latn      Asturian
awa              Deva      Awadhi
ayr,ay,aym       Latn      Aymara/Central Aymara
azb              Arab      South Azerbaijani
azj,az,aze       Latn      Azerbaijani/North Azerbaijani/Azeri
bak,ba           Cyrl      Bashkir
bam,bm           Latn      Bambara
ban              Latn      Balinese
bel,be           Cyrl      Belarusian/Byelorussian
bem              Latn      Bemba
ben,bn           Beng      Bengali/Bangla
bho              Deva      Bhojpuri
bjn              Latn,Arab Banjar
bod,bo,tib       Tibt      Tibetan/Standard Tibetan
bos,bs           Latn,Cyrl Bosnian
bre,br           Latn      Breton
bug              Latn      Buginese
bul,bg           Cyrl      Bulgarian
cat,ca           Latn      Catalan/Valencian
ceb              Latn      Cebuano
ces,cs,cze       Latn      Czech
cjk              Latn      Chokwe
ckb              Arab      Central Kurdish/Sorani
crh              Latn,Cyrl Crimean Tatar
cym,cy,wel       Latn      Welsh
dan,da           Latn      Danish
deu,de,ger       Latn      German
dik,din          Latn      Dinka/Southwestern Dinka
dyu              Latn      Dyula
dzo,dz           Tibt      Dzongkha
ell,el,gre       Grek      Greek/Modern Greek
eng,en           Latn      English
epo,eo           Latn      Esperanto
est,et,ekk       Latn      Estonian/Standard Estonian
eus,eu,baq       Latn      Basque
ewe,ee           Latn      Ewe
fao,fo           Latn      Faroese
fij,fj           Latn      Fijian
fin,fi           Latn      Finnish
fon              Latn      Fon
fra,fr,fre       Latn      French
fry,fy           Latn      Western Frisian/Frisian
fur              Latn      Friulian
fuv,ff,ful       Latn      Fulah/Fula/Nigerian Fulfulde
gaz,om,orm       Latn      Oromo/West Central Oromo
gla,gd           Latn      Scottish Gaelic/Gaelic
gle,ga           Latn      Irish
glg,gl           Latn      Galician
grn,gn,gug       Latn      Guarani
guj,gu           Gujr      Gujarati
hat,ht           Latn      Haitian Creole/Haitian
hau,ha           Latn      Hausa
heb,he,iw        Hebr      Hebrew
hin,hi           Deva      Hindi
hne              Deva      Chhattisgarhi
hrv,hr           Latn      Croatian
hun,hu           Latn      Hungarian
hye,hy,arm       Armn      Armenian
ibo,ig           Latn      Igbo
ilo              Latn      Ilocano/Iloko
ind,id,in        Latn      Indonesian
isl,is,ice       Latn      Icelandic
ita,it           Latn      Italian
jav,jv,jw        Latn      Javanese
jpn,ja           Jpan      Japanese
kab              Latn      Kabyle
kac              Latn      Jingpho/Kachin
kam              Latn      Kamba
kan,kn           Knda      Kannada
kas,ks           Arab,Deva Kashmiri
kat,ka,geo       Geor      Georgian
kaz,kk           Cyrl      Kazakh
kbp              Latn      Kabiye
kea              Latn      Kabuverdianu
khk,mn,mon       Cyrl      Mongolian/Halh Mongolian
khm,km           Khmr      Khmer/Central Khmer
kik,ki           Latn      Kikuyu
kin,rw           Latn      Kinyarwanda
kir,ky           Cyrl      Kyrgyz/Kirghiz
kmb              Latn      Kimbundu
kmr,ku,kur       Latn      Kurdish/Northern Kurdish/Kurmanji
knc,kr,kau       Latn,Arab Kanuri/Central Kanuri
kon,kg           Latn      Kongo/Kikongo
kor,ko           Hang      Korean
lao,lo           Laoo      Lao
lij              Latn      Ligurian
lim,li           Latn      Limburgish/Limburgan
lin,ln           Latn      Lingala
lit,lt           Latn      Lithuanian
lmo              Latn      Lombard
ltg              Latn      Latgalian
ltz,lb           Latn      Luxembourgish
lua              Latn      Luba-Kasai/Luba-Lulua
lug,lg           Latn      Ganda/Luganda
luo              Latn      Luo
lus              Latn      Mizo
lvs,lv,lav       Latn      Latvian/Standard Latvian
mag              Deva      Magahi
mai              Deva      Maithili
mal,ml           Mlym      Malayalam
mar,mr           Deva      Marathi
min              Latn,Arab Minangkabau
mkd,mk,mac       Cyrl      Macedonian
mlt,mt           Latn      Maltese
mni              Beng,Mtei Manipuri/Meitei
mos              Latn      Mossi
mri,mi,mao       Latn      Maori
mya,my,bur       Mymr      Burmese/Myanmar
nld,nl,dut       Latn      Dutch/Flemish
nno,nn           Latn      Norwegian Nynorsk/Nynorsk
nob,no,nb,nor    Latn      Norwegian/Norwegian Bokmal/Bokmal
npi,ne,nep       Deva      Nepali
nso,ns           Latn      Northern Sotho/Pedi/Sepedi
nus              Latn      Nuer
nya,ny           Latn      Nyanja/Chichewa/Chewa
oci,oc           Latn      Occitan
ory,or,ori       Orya      Odia/Oriya
pag              Latn      Pangasinan
pan,pa           Guru      Punjabi/Panjabi/Eastern Panjabi
pap              Latn      Papiamento
pbt,ps,pus       Arab      Pashto/Pushto/Southern Pashto
pes,fa,fas,per   Arab      Persian/Farsi/Western Persian
plt,mg,mlg       Latn      Malagasy/Plateau Malagasy
pol,pl           Latn      Polish
por,pt           Latn      Portuguese
prs              Arab      Dari
quy,qu,que       Latn      Quechua/Ayacucho Quechua
ron,ro,rum,mo    Latn      Romanian/Moldavian/Moldovan
run,rn           Latn      Rundi/Kirundi
rus,ru           Cyrl      Russian
sag,sg           Latn      Sango
san,sa           Deva      Sanskrit
sat              Olck      Santali
scn              Latn      Sicilian
shn              Mymr      Shan
sin,si           Sinh      Sinhala/Sinhalese
slk,sk,slo       Latn      Slovak
slv,sl           Latn      Slovenian/Slovene
smo,sm           Latn      Samoan
sna,sn           Latn      Shona
snd,sd           Arab,Deva Sindhi
som,so           Latn      Somali
sot,st           Latn      Southern Sotho/Sotho/Sesotho
spa,es           Latn      Spanish/Castilian
srd,sc           Latn      Sardinian
srp,sr           Cyrl,Latn Serbian
ssw,ss           Latn      Swati/Swazi
sun,su           Latn      Sundanese
swe,sv           Latn      Swedish
swh,sw,swa       Latn      Swahili/Kiswahili
szl              Latn      Silesian
tam,ta           Taml      Tamil
taq,tmh          Latn,Tfng Tamasheq/Tamashek
tat,tt           Cyrl      Tatar
tel,te           Telu      Telugu
tgk,tg           Cyrl      Tajik
tgl,tl,fil       Latn      Tagalog/Filipino
tha,th           Thai      Thai
tir,ti           Ethi      Tigrinya
tpi              Latn      Tok Pisin
tsn,tn           Latn      Tswana/Setswana
tso,ts           Latn      Tsonga
tuk,tk           Latn      Turkmen
tum              Latn      Tumbuka
tur,tr           Latn      Turkish
twi,tw           Latn      Twi
tzm              Tfng,Latn Central Atlas Tamazight/Tamazight
uig,ug           Arab      Uyghur/Uighur
ukr,uk           Cyrl      Ukrainian
umb              Latn      Umbundu
urd,ur           Arab      Urdu
uzn,uz,uzb       Latn,Cyrl Uzbek/Northern Uzbek
vec              Latn      Venetian
vie,vi           Latn      Vietnamese
war              Latn      Waray
wol,wo           Latn      Wolof
xho,xh           Latn      Xhosa
ydd,yi,yid,ji    Hebr      Yiddish/Eastern Yiddish
yor,yo           Latn      Yoruba
yue              Hant,Hans Cantonese/Yue Chinese
zho,zh,chi,cmn   Hans,Hant Chinese/Mandarin/Mandarin Chinese
zsm,ms,msa,may   Latn      Malay/Standard Malay
zul,zu           Latn      Zulu
"""
# Scripts by which texts or codes of one language are told apart.
SCRIPT_NAMES = {
  'Arab': 'Arabic', 'Beng': 'Bengali', 'Cyrl': 'Cyrillic', 'Deva': 'Devanagari',
  'Hans': 'Simplified', 'Hant': 'Traditional', 'Latn': 'Latin',
  'Mtei': 'Meitei', 'Olck': 'Ol Chiki', 'Tfng': 'Tifinagh',
}  # fmt: skip
# Codes of other scripts that mean the same text.
SAME_SCRIPTS = {'Kore': 'Hang', 'Hrkt': 'Jpan'}
# (language, region) -> the script that is written there.
REGION_SCRIPTS = {
  ('zho', 'CN'): 'Hans', ('zho', 'SG'): 'Hans', ('zho', 'MY'): 'Hans',
  ('zho', 'TW'): 'Hant', ('zho', 'HK'): 'Hant', ('zho', 'MO'): 'Hant',
}  # fmt: skip
# NLLB's code names another script than its texts have.
MISNAMED = {'sat_Beng': 'sat_Olck'}
