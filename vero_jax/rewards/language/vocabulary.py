"""Word lists of the sentence splitter: abbreviations with a full stop, and what a capital letter says of a word."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ABBREVIATIONS = _words("""
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co col
    colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen h h.f
    h.m i.m.s ill inc j.b j.c j.j j.k j.m j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj messrs
    mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r r.a r.h
    r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st t t.j tenn tues u.k u.n u.s u.s.a
    u.s.s.r v va vs vt w w.r w.va w.w wash wed wis yr
""")
"""What may stand before a full stop that ends no sentence, in lower case and without that full stop."""

SENTENCE_STARTERS = _words("""
    according although among both but despite even he however i if in indeed instead it many meanwhile moreover most
    nevertheless nonetheless nor sales separately similarly since so some the there these they this though thus
    under when while yet
""")
"""Words that, capitalised after an abbreviation, open a new sentence."""

NAME_WORDS = _words("""
    a across actually added after again against air all also an and another answer any are around as at bank be
    beach because been before began begins below big black blue breakfast brown building buildings by can cars cats
    center central children church city clearly college could day did dinner do during each earth east every
    everybody everyone everything fifth fire first five for four fourth friends from general generally getting gold
    good gray great green had has have having high his home house how international is island its just king knowing
    lake last later leaves leaving life light likely little long looks love main making may maybe men might more
    moving much must my names national new next nine no nobody north not notes notice now obviously of off often old
    on once one only or other our out over own park people perhaps pictures plants president prices queen quickly
    quite rather reading really red road running school sea second seemingly seen several she should shows signs
    silver six something somewhere south star state street students sun taken talking than that their then third
    those three time to too toward traffic travelers two until up usually vehicles was water we west what where
    white who whose why will windows with women workers world would you young
""")
"""Words used both in small letters and, in names and titles, with a capital: a capital says nothing."""

LOWER_CASE_WORDS = _words("""
    above accordingly adding afterwards almost along already altogether always answers anyone anything apparently
    approximately asked asking begin being between bicycles birds boats chairs colors colours consider counting
    currently does dogs doing drivers eating eight eventually exactly farmers figures finally firstly flowers
    following frequently furthermore girls given giving going heading hence her here hopefully houses images
    immediately including initially lastly lately likewise looking lunch mainly meaning measured meetings nearby
    neither normally nothing numbers objects occasionally originally otherwise overall particularly pedestrians pink
    playing please presumably previously primarily probably rarely recently results secondly seeing seven shadows
    showing shown simply sitting slowly someone sometimes soon specifically standing starting subsequently such
    suddenly surely surprisingly taking ten thank thanks them thereafter therefore thirdly through together trains
    trees trying turning typically ultimately unfortunately upon us using very visitors waiting walkers walking
    watching wearing were whenever whereas whether which without words working writing yes your
""")
"""Words that a writer capitalises only where a sentence begins."""
